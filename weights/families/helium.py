"""Helium (Kyutai 2025): Llama's block; channels turn as neighbours."""

from __future__ import annotations

from weights.config import decoders
from weights.config.facts import ConfigReader
from weights.config.family import Family
from weights.config.rope import RopeDefaults
from weights.spec import ModelSpec

_ROPE = RopeDefaults(theta=100000.0, interleaved=True)


def _read(facts: ConfigReader) -> ModelSpec:
    attention = decoders.read_attention(
        facts, kv_heads=20, head_dim=128, qkv_bias=facts.flag("attention_bias", False)
    )
    return decoders.read_decoder(
        facts,
        family="helium",
        attention=attention,
        mlp=decoders.read_mlp(facts, bias=facts.flag("mlp_bias", False)),
        norm=decoders.rms_norm(facts, 1e-8),
        max_positions=4096,
        rope=_ROPE,
        bos=1,
        eos=2,
    )


FAMILY = Family(
    name="helium",
    architecture="HeliumForCausalLM",
    other_names=("HeliumModel",),
    model_type="helium",
    prefix="model.",
    sources=decoders.LLAMA_NAMES,
    skips=decoders.SKIPS,
    harmless=frozenset(),
    read=_read,
)
