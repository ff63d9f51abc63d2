"""GLM 4 and Z1 of April 2025: norms around every block, a fused gate, and half of each head's
channels turn, neighbours as pairs."""

from __future__ import annotations

from weights.config import decoders
from weights.config.facts import ConfigReader
from weights.config.family import Family
from weights.config.rope import RopeDefaults
from weights.spec import ModelSpec, NormPlacement

_ROPE = RopeDefaults(partial=0.5, interleaved=True)


def _read(facts: ConfigReader) -> ModelSpec:
    attention = decoders.read_attention(
        facts, kv_heads=2, head_dim=128, qkv_bias=facts.flag("attention_bias", True)
    )
    return decoders.read_decoder(
        facts,
        family="glm4",
        attention=attention,
        norm=decoders.rms_norm(facts, 1.5625e-7, NormPlacement.BOTH),
        max_positions=131072,
        rope=_ROPE,
        eos=(151329, 151336, 151338),
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
