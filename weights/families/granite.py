"""Granite 3 and 4, dense (arXiv 2407.13739): Llama's block with four scalars, for the embedding,
the scores, what each block adds, and the logits."""

from __future__ import annotations

from weights.config import decoders
from weights.config.facts import ConfigReader
from weights.config.family import Family
from weights.spec import ModelSpec


def _read(facts: ConfigReader) -> ModelSpec:
    bias = facts.flag("attention_bias", False)
    attention = decoders.read_attention(
        facts,
        qkv_bias=bias,
        output_bias=bias,
        scale=facts.number("attention_multiplier", 1.0),
    )
    return decoders.read_decoder(
        facts,
        family="granite",
        attention=attention,
        mlp=decoders.read_mlp(facts, bias=facts.flag("mlp_bias", False)),
        max_positions=2048,
        embedding_scale=facts.number("embedding_multiplier", 1.0),
        residual_scale=facts.number("residual_multiplier", 1.0),
        logit_scale=1.0 / facts.number("logits_scaling", 1.0),
        bos=1,
        eos=2,
    )


FAMILY = Family(
    name="granite",
    architecture="GraniteForCausalLM",
    other_names=("GraniteModel",),
    model_type="granite",
    prefix="model.",
    sources=decoders.LLAMA_NAMES,
    skips=decoders.SKIPS,
    harmless=frozenset(),
    read=_read,
)
