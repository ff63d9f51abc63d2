"""SmolLM3: Llama's block, where the queries and keys of every fourth layer do not turn."""

from __future__ import annotations

from weights.config import decoders
from weights.config.facts import ConfigReader
from weights.config.family import Family
from weights.config.keys import words
from weights.config.rope import RopeDefaults
from weights.spec import ModelSpec

_ROPE = RopeDefaults(theta=2e6)


def _read(facts: ConfigReader) -> ModelSpec:
    bias = facts.flag("attention_bias", False)
    attention = decoders.read_attention(facts, kv_heads=4, qkv_bias=bias, output_bias=bias)
    turns = _rotary_layers(facts)
    slides = facts.flag("use_sliding_window", False)
    return decoders.read_decoder(
        facts,
        family="smollm3",
        attention=attention,
        mlp=decoders.read_mlp(facts, bias=facts.flag("mlp_bias", False)),
        max_positions=32768,
        tied=True,
        rope=_ROPE,
        rotary_layers=turns,
        windows=decoders.read_windows(facts, slides=lambda i: not turns[i], used=slides),
        bos=128000,
        eos=128001,
    )


def _rotary_layers(facts: ConfigReader) -> tuple[bool, ...]:
    """``no_rope_layers`` has 1 for a layer that turns, whatever its name says."""
    layers = decoders.num_layers(facts)
    every = facts.integer("no_rope_layer_interval", 4)
    turns = facts.raw("no_rope_layers")
    if turns is None:
        return tuple((layer + 1) % every != 0 for layer in range(layers))
    if not isinstance(turns, list) or len(turns) < layers or not {0, 1}.issuperset(turns):
        raise facts.error("no_rope_layers", f"must be a list of {layers} numbers, each 0 or 1")
    return tuple(bool(turn) for turn in turns[:layers])


FAMILY = Family(
    name="smollm3",
    architecture="SmolLM3ForCausalLM",
    other_names=("SmolLM3Model",),
    model_type="smollm3",
    prefix="model.",
    sources=decoders.LLAMA_NAMES,
    skips=decoders.SKIPS,
    harmless=words("max_window_layers"),  # Qwen's key, which nothing here reads
    read=_read,
)
