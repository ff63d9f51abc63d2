"""GLM-4 9B of 2024 in transformers' names (glm-4-9b-chat-hf): Llama's block with a fused gate, and
half of each head's channels turn, neighbours as pairs."""

from __future__ import annotations

from weights.config import decoders
from weights.config.facts import ConfigReader
from weights.config.family import Family
from weights.config.rope import RopeDefaults
from weights.spec import ModelSpec

_ROPE = RopeDefaults(partial=0.5, interleaved=True)
_EOS = (151329, 151336, 151338)


def _read(facts: ConfigReader) -> ModelSpec:
    attention = decoders.read_attention(
        facts, kv_heads=2, head_dim=128, qkv_bias=facts.flag("attention_bias", True)
    )
    return decoders.read_decoder(
        facts,
        family="glm",
        attention=attention,
        norm=decoders.rms_norm(facts, 1.5625e-7),
        max_positions=131072,
        rope=_ROPE,
        eos=_EOS,
    )


FAMILY = Family(
    name="glm",
    architecture="GlmForCausalLM",
    other_names=("GlmModel",),
    model_type="glm",
    prefix="model.",
    sources=decoders.names(*decoders.INPUT_NORMS, *decoders.ATTENTION, *decoders.FUSED_MLP),
    skips=decoders.SKIPS,
    harmless=frozenset(),
    read=_read,
)
