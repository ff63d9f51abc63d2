"""Gemma 1 (arXiv 2403.08295): a scaled embedding, norms whose weights are stored less 1, a GELU
gate."""

from __future__ import annotations

from weights.config import decoders
from weights.config.facts import ConfigReader
from weights.config.family import Family
from weights.spec import ModelSpec


def _read(facts: ConfigReader) -> ModelSpec:
    bias = facts.flag("attention_bias", False)
    attention = decoders.read_attention(
        facts, kv_heads=16, head_dim=256, qkv_bias=bias, output_bias=bias
    )
    facts.only("use_bidirectional_attention", False, "a decoder looks back alone")
    return decoders.read_decoder(
        facts,
        family="gemma",
        attention=attention,
        mlp=decoders.read_gelu_tanh_mlp(facts),
        norm=decoders.rms_norm(facts, unit_offset=True),
        max_positions=8192,
        tied=True,
        embedding_scale=facts.integer("hidden_size") ** 0.5,
        rounded_embedding_scale=True,
        bos=2,
        eos=1,
    )


FAMILY = Family(
    name="gemma",
    architecture="GemmaForCausalLM",
    other_names=("GemmaModel",),
    model_type="gemma",
    prefix="model.",
    sources=decoders.LLAMA_NAMES,
    skips=decoders.SKIPS,
    harmless=frozenset(),
    read=_read,
)
