"""Mistral 7B, Nemo, Small and their kin (arXiv 2310.06825): Llama's block; the first had a window
in every layer."""

from __future__ import annotations

from weights.config import decoders
from weights.config.facts import ConfigReader
from weights.config.family import Family
from weights.spec import ModelSpec


def _read(facts: ConfigReader) -> ModelSpec:
    attention = decoders.read_attention(facts, kv_heads=8)
    return decoders.read_decoder(
        facts,
        family="mistral",
        attention=attention,
        max_positions=4096 * 32,
        windows=decoders.read_windows(facts, slides=lambda layer: True, default=4096),
        bos=1,
        eos=2,
    )


FAMILY = Family(
    name="mistral",
    architecture="MistralForCausalLM",
    other_names=("MistralModel",),
    model_type="mistral",
    prefix="model.",
    sources=decoders.LLAMA_NAMES,
    skips=decoders.SKIPS,
    harmless=frozenset(),
    read=_read,
)
