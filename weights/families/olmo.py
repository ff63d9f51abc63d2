"""OLMo 1 (arXiv 2402.00838): Llama's block with Layer norms that have neither weights nor biases;
queries, keys and values may be clipped."""

from __future__ import annotations

from weights.config import decoders
from weights.config.facts import ConfigReader
from weights.config.family import Family
from weights.spec import ModelSpec, NormKind, NormSpec


def _read(facts: ConfigReader) -> ModelSpec:
    bias = facts.flag("attention_bias", False)
    attention = decoders.read_attention(
        facts, qkv_bias=bias, output_bias=bias, qkv_clip=facts.cap("clip_qkv", None)
    )
    return decoders.read_decoder(
        facts,
        family="olmo",
        attention=attention,
        norm=NormSpec(NormKind.LAYER, 1e-5, weight=False),
        max_positions=2048,
        eos=50279,
    )


FAMILY = Family(
    name="olmo",
    architecture="OlmoForCausalLM",
    other_names=("OlmoModel",),
    model_type="olmo",
    prefix="model.",
    sources=decoders.names(*decoders.ATTENTION, *decoders.GATED_MLP),
    skips=decoders.SKIPS,
    harmless=frozenset(),
    read=_read,
)
