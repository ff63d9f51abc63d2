"""ERNIE 4.5, dense: Llama's block whose rotary pairs are neighbouring channels."""

from __future__ import annotations

from weights.config import decoders
from weights.config.facts import ConfigReader
from weights.config.family import Family
from weights.config.rope import RopeDefaults
from weights.spec import ModelSpec

_ROPE = RopeDefaults(theta=500000.0, interleaved=True)


def _read(facts: ConfigReader) -> ModelSpec:
    bias = facts.flag("use_bias", False)
    attention = decoders.read_attention(
        facts, kv_heads=2, head_dim=128, qkv_bias=bias, output_bias=bias
    )
    return decoders.read_decoder(
        facts,
        family="ernie4_5",
        attention=attention,
        mlp=decoders.read_mlp(facts, bias=bias),
        norm=decoders.rms_norm(facts, 1e-5),
        max_positions=131072,
        tied=True,
        rope=_ROPE,
        bos=1,
        eos=2,
    )


FAMILY = Family(
    name="ernie4_5",
    architecture="Ernie4_5ForCausalLM",
    other_names=("Ernie4_5Model", "Ernie4_5_ForCausalLM"),
    model_type="ernie4_5",
    prefix="model.",
    sources=decoders.LLAMA_NAMES,
    skips=decoders.SKIPS,
    harmless=frozenset(),
    read=_read,
)
