"""GLM 4 and Z1 of April 2025: norms around every block, a fused gate, and half of each head's
channels turn, neighbours as pairs."""

from __future__ import annotations

from weights.families import decoders
from weights.families.base import Family
from weights.families.facts import ConfigReader
from weights.families.rope import RopeDefaults, read_rope
from weights.spec import ModelSpec, NormPlacement

_ROPE = RopeDefaults(partial=0.5, interleaved=True)


def _read(facts: ConfigReader) -> ModelSpec:
    attention = decoders.read_attention(
        facts, kv_heads=2, head_dim=128, qkv_bias=facts.flag("attention_bias", True)
    )
    max_positions = decoders.max_positions(facts, 131072)
    return decoders.read_decoder(
        facts,
        family="glm4",
        attention=attention,
        mlp=decoders.read_mlp(facts),
        norm=decoders.rms_norm(facts, 1.5625e-7, NormPlacement.BOTH),
        max_positions=max_positions,
        rope=read_rope(
            facts, head_dim=attention.head_dim, max_positions=max_positions, defaults=_ROPE
        ),
    )


_NORMS = (
    *decoders.in_layer("input_layernorm", "attention_norm"),
    *decoders.in_layer("post_self_attn_layernorm", "attention_output_norm"),
    *decoders.in_layer("post_attention_layernorm", "mlp_norm"),
    *decoders.in_layer("post_mlp_layernorm", "mlp_output_norm"),
)


FAMILY = Family(
    name="glm4",
    architecture="Glm4ForCausalLM",
    other_names=("Glm4Model",),
    model_type="glm4",
    prefix="model.",
    sources=decoders.names(*_NORMS, *decoders.ATTENTION, *decoders.FUSED_MLP),
    skips=decoders.SKIPS,
    harmless=frozenset(),
    read=_read,
)
