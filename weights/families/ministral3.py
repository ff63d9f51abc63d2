"""Ministral 3 (Mistral 2025): Mistral's block with yarn; queries are scaled by their position."""

from __future__ import annotations

from weights.config import decoders
from weights.config.facts import ConfigReader
from weights.config.family import SIZES, Family
from weights.config.keys import words
from weights.config.rope import RopeDefaults, scaling_object
from weights.spec import ModelSpec, QueryScale

_BETA = "llama_4_scaling_beta"
_ROPE = RopeDefaults(theta=1e6, own=words(f"{_BETA} max_position_embeddings"))


def _read(facts: ConfigReader) -> ModelSpec:
    scaling = scaling_object(facts, _ROPE)
    if scaling is None:
        raise facts.error("rope_parameters", f"is missing; {facts.architecture} needs it")
    beta = scaling.number(_BETA, above=-1e-9)
    length = scaling.integer("original_max_position_embeddings", high=1 << 31)
    attention = decoders.read_attention(
        facts,
        kv_heads=8,
        head_dim=128,
        query_scale=QueryScale(beta, length) if beta else None,
    )
    return decoders.read_decoder(
        facts,
        family="ministral3",
        attention=attention,
        norm=decoders.rms_norm(facts, 1e-5),
        max_positions=262144,
        rope=_ROPE,
        windows=decoders.read_windows(facts, slides=lambda layer: True),
        bos=1,
        eos=2,
    )


FAMILY = Family(
    name="ministral3",
    architecture="Ministral3ForCausalLM",
    other_names=("Ministral3Model",),
    model_type="ministral3",
    prefix="model.",
    sources=decoders.LLAMA_NAMES,
    skips=decoders.SKIPS,
    harmless=frozenset(),
    read=_read,
    sizes={
        **SIZES,
        "rope_parameters": {_BETA: 0.1, "original_max_position_embeddings": 16384},
    },
)
