"""Qwen 3, dense (arXiv 2505.09388): Llama's block with RMS norms of each query and key head."""

from __future__ import annotations

from weights.config import decoders
from weights.config.facts import ConfigReader
from weights.config.family import Family
from weights.spec import ModelSpec, QkNorm


def _read(facts: ConfigReader) -> ModelSpec:
    bias = facts.flag("attention_bias", False)
    attention = decoders.read_attention(
        facts, head_dim=128, qkv_bias=bias, output_bias=bias, qk_norm=QkNorm.HEAD
    )
    return decoders.read_decoder(
        facts,
        family="qwen3",
        attention=attention,
        max_positions=32768,
        windows=decoders.read_upper_windows(facts),
    )


FAMILY = Family(
    name="qwen3",
    architecture="Qwen3ForCausalLM",
    other_names=("Qwen3Model",),
    model_type="qwen3",
    prefix="model.",
    sources=decoders.names(
        *decoders.INPUT_NORMS, *decoders.ATTENTION, *decoders.QK_NORMS, *decoders.GATED_MLP
    ),
    skips=decoders.SKIPS,
    harmless=frozenset(),
    read=_read,
)
