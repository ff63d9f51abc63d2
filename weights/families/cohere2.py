"""Command R7B and A (Cohere 2025): Cohere with a window in three of four layers, whose queries and
keys alone turn."""

from __future__ import annotations

from weights.config import decoders
from weights.config.facts import ConfigReader
from weights.config.family import Family
from weights.config.rope import RopeDefaults
from weights.spec import ModelSpec, NormKind, NormSpec, ParallelBlock

_ROPE = RopeDefaults(theta=10000.0, interleaved=True)
# What the published files say of the arithmetic although it has no other kind.
_STATED = {
    "order_of_interleaved_layers": "local_attn_first",
    "position_embedding_type": "rope_gptj",
    "rotary_pct": 1.0,
    "use_embedding_sharing": True,
    "use_gated_activation": True,
    "use_parallel_block": True,
    "use_parallel_embedding": True,
    "use_qk_norm": False,
}


def _read(facts: ConfigReader) -> ModelSpec:
    bias = facts.flag("attention_bias", False)
    attention = decoders.read_attention(facts, qkv_bias=bias, output_bias=bias)
    every = facts.integer("sliding_window_pattern", 4)
    for key, value in _STATED.items():
        facts.only(key, value, "the decoder is built so")
    facts.only("layer_switch", every, "sliding_window_pattern says it")
    windows = decoders.read_windows(facts, slides=lambda i: (i + 1) % every != 0, default=4096)
    return decoders.read_decoder(
        facts,
        family="cohere2",
        attention=attention,
        norm=NormSpec(NormKind.LAYER, facts.number("layer_norm_eps", 1e-5, high=1.0), bias=False),
        max_positions=8192,
        tied=True,
        rope=_ROPE,
        parallel=ParallelBlock.SHARED_NORM,
        logit_scale=facts.number("logit_scale", 0.0625),
        windows=windows,
        rotary_layers=tuple(window > 0 for window in windows),
        bos=5,
        eos=255001,
    )


FAMILY = Family(
    name="cohere2",
    architecture="Cohere2ForCausalLM",
    other_names=("Cohere2Model",),
    model_type="cohere2",
    prefix="model.",
    sources=decoders.names(
        *decoders.in_layer("input_layernorm", "attention_norm"),
        *decoders.ATTENTION,
        *decoders.GATED_MLP,
    ),
    skips=decoders.SKIPS,
    harmless=frozenset(),
    read=_read,
)
