"""Llama 1, 2 and 3 (arXiv 2302.13971, 2307.09288, 2407.21783) and models of the same shape,
such as TinyLlama and SmolLM: RMS norm before each block, rotary positions, gated MLP."""

from __future__ import annotations

from weights.config import decoders
from weights.config.facts import ConfigReader
from weights.config.family import Family
from weights.config.keys import words
from weights.spec import ModelSpec


def _read(facts: ConfigReader) -> ModelSpec:
    bias = facts.flag("attention_bias", False)
    attention = decoders.read_attention(facts, qkv_bias=bias, output_bias=bias)
    # How the training sliced its matrix products: the same sums, which transformers computes whole.
    facts.integer("pretraining_tp", 1)
    return decoders.read_decoder(
        facts,
        family="llama",
        attention=attention,
        mlp=decoders.read_mlp(facts, bias=facts.flag("mlp_bias", False)),
        max_positions=2048,
        bos=1,
        eos=2,
    )


FAMILY = Family(
    name="llama",
    architecture="LlamaForCausalLM",
    other_names=("LLaMAForCausalLM", "LlamaModel"),
    model_type="llama",
    prefix="model.",
    sources=decoders.LLAMA_NAMES,
    skips=decoders.SKIPS,
    harmless=words("is_llama_config"),
    read=_read,
)
