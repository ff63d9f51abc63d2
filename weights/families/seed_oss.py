"""Seed-OSS: Llama's block, with biases of queries, keys and values and, apart from them, of the
output."""

from __future__ import annotations

from weights.config import decoders
from weights.config.facts import ConfigReader
from weights.config.family import Family
from weights.config.keys import words
from weights.spec import ModelSpec


def _read(facts: ConfigReader) -> ModelSpec:
    attention = decoders.read_attention(
        facts,
        kv_heads=8,
        head_dim=128,
        qkv_bias=facts.flag("attention_bias", True),
        output_bias=facts.flag("attention_out_bias", False),
    )
    facts.integer("pretraining_tp", 1)  # how the training was sliced
    return decoders.read_decoder(
        facts,
        family="seed_oss",
        attention=attention,
        mlp=decoders.read_mlp(facts, bias=facts.flag("mlp_bias", False)),
        max_positions=524288,
        bos=0,
        eos=2,
    )


FAMILY = Family(
    name="seed_oss",
    architecture="SeedOssForCausalLM",
    other_names=("SeedOssModel",),
    model_type="seed_oss",
    prefix="model.",
    sources=decoders.LLAMA_NAMES,
    skips=decoders.SKIPS,
    harmless=words("residual_dropout"),
    read=_read,
)
