"""OLMo 3: OLMo 2 with a window in three of four layers, which turn by frequencies that are not
scaled."""

from __future__ import annotations

from weights.config import decoders
from weights.config.facts import ConfigReader
from weights.config.family import Family
from weights.config.rope import RopeDefaults, read_ropes
from weights.spec import ModelSpec, NormPlacement, QkNorm

_ROPE = RopeDefaults(theta=500000.0)


def _read(facts: ConfigReader) -> ModelSpec:
    bias = facts.flag("attention_bias", False)
    attention = decoders.read_attention(
        facts, qkv_bias=bias, output_bias=bias, qk_norm=QkNorm.WHOLE
    )
    max_positions = decoders.max_positions(facts, 2048)
    rope, local_rope = read_ropes(
        facts, head_dim=attention.head_dim, max_positions=max_positions, defaults=_ROPE
    )
    return decoders.read_decoder(
        facts,
        family="olmo3",
        attention=attention,
        norm=decoders.rms_norm(facts, 1e-5, NormPlacement.OUTPUT),
        max_positions=max_positions,
        rope=rope,
        local_rope=local_rope,
        windows=decoders.read_windows(facts, slides=lambda i: (i + 1) % 4 != 0, default=4096),
        eos=50279,
    )


FAMILY = Family(
    name="olmo3",
    architecture="Olmo3ForCausalLM",
    other_names=("Olmo3Model",),
    model_type="olmo3",
    prefix="model.",
    sources=decoders.names(
        *decoders.ATTENTION, *decoders.QK_NORMS, *decoders.OUTPUT_NORMS, *decoders.GATED_MLP
    ),
    skips=decoders.SKIPS,
    harmless=frozenset(),
    read=_read,
)
