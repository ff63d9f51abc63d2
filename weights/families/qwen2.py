"""Qwen 1.5, 2 and 2.5 (arXiv 2407.10671, 2412.15115): Llama's block with biases of queries, keys
and values, and in some configurations a window in the upper layers."""

from __future__ import annotations

from weights.config import decoders
from weights.config.facts import ConfigReader
from weights.config.family import Family
from weights.spec import ModelSpec


def _read(facts: ConfigReader) -> ModelSpec:
    attention = decoders.read_attention(facts, qkv_bias=True)
    return decoders.read_decoder(
        facts,
        family="qwen2",
        attention=attention,
        max_positions=32768,
        windows=decoders.read_upper_windows(facts),
    )


FAMILY = Family(
    name="qwen2",
    architecture="Qwen2ForCausalLM",
    other_names=("Qwen2Model",),
    model_type="qwen2",
    prefix="model.",
    sources=decoders.LLAMA_NAMES,
    skips=decoders.SKIPS,
    harmless=frozenset(),
    read=_read,
)
