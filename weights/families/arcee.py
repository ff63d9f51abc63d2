"""Arcee's AFM: Llama's attention, and an MLP without a gate whose activation is a squared ReLU."""

from __future__ import annotations

from weights.config import decoders
from weights.config.facts import ConfigReader
from weights.config.family import Family
from weights.spec import ModelSpec


def _read(facts: ConfigReader) -> ModelSpec:
    bias = facts.flag("attention_bias", False)
    attention = decoders.read_attention(facts, qkv_bias=bias, output_bias=bias)
    return decoders.read_decoder(
        facts,
        family="arcee",
        attention=attention,
        mlp=decoders.read_mlp(
            facts, default="relu2", gated=False, bias=facts.flag("mlp_bias", False)
        ),
        norm=decoders.rms_norm(facts, 1e-5),
        max_positions=4096,
        bos=128000,
        eos=128001,
    )


FAMILY = Family(
    name="arcee",
    architecture="ArceeForCausalLM",
    other_names=("ArceeModel",),
    model_type="arcee",
    prefix="model.",
    sources=decoders.names(*decoders.INPUT_NORMS, *decoders.ATTENTION, *decoders.UP_DOWN),
    skips=decoders.SKIPS,
    harmless=frozenset(),
    read=_read,
)
