"""Gemma 4, its text part (Google 2026): Gemma 3's block, but layers that see all have wider heads
than those with a window and rotary frequencies in a part of their pairs, values are normalised, and
each layer's stream is scaled. Its norms multiply by their weights as they stand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from weights.config import decoders
from weights.config.facts import ConfigReader
from weights.config.family import SIZES, Family, Source
from weights.config.keys import words
from weights.config.rope import RopeDefaults, read_ropes
from weights.spec import (
    AttentionSpec,
    ModelSpec,
    NormPlacement,
    QkNorm,
    RopeScaling,
    RopeSpec,
)
from weights.strict_json import shown


def _read(facts: ConfigReader) -> ModelSpec:
    facts.only("enable_moe_block", False, "experts beside the MLP are not served yet")
    facts.only("num_kv_shared_layers", 0, "layers that read another's keys are not served yet")
    if facts.integer("hidden_size_per_layer_input", 256, low=0):
        raise facts.error("hidden_size_per_layer_input", "is not 0, and only 0 is served yet")
    bias = facts.flag("attention_bias", False)
    local = decoders.read_attention(
        facts,
        kv_heads=4,
        head_dim=256,
        scale=1.0,
        qkv_bias=bias,
        output_bias=bias,
        qk_norm=QkNorm.HEAD,
        value_norm=True,
    )
    windows = decoders.read_windows(facts, slides=lambda i: (i + 1) % 6 != 0, default=512)
    if windows:  # the last layer sees all, whatever the file says
        windows = (*windows[:-1], 0)
        windows = windows if any(windows) else ()
    attention = _global_attention(facts, local, windows)
    max_positions = decoders.max_positions(facts, 131072)
    if facts.raw("use_bidirectional_attention") != "vision":  # of tokens of an image
        facts.only("use_bidirectional_attention", None, "text looks back alone")
    rope, local_rope = _ropes(facts, attention.head_dim, local.head_dim, max_positions)
    return decoders.read_decoder(
        facts,
        family="gemma4",
        attention=attention,
        local_attention=local if windows and local != attention else None,
        mlp=decoders.read_mlp(facts, key="hidden_activation", default="gelu_pytorch_tanh"),
        norm=decoders.rms_norm(facts, placement=NormPlacement.BOTH),
        max_positions=max_positions,
        tied=True,
        rope=rope,
        local_rope=local_rope,
        windows=windows,
        embedding_scale=facts.integer("hidden_size") ** 0.5,
        rounded_embedding_scale=True,
        logit_soft_cap=facts.cap("final_logit_softcapping", None),
        stream_scale=True,
        bos=2,
        eos=1,
    )


def _global_attention(
    facts: ConfigReader, local: AttentionSpec, windows: tuple[int, ...]
) -> AttentionSpec:
    """The heads of layers that see all. Published files state them once, and those that
    transformers 5 saves layer by layer."""
    shared = facts.flag("attention_k_eq_v", False)
    key = "per_layer_config"
    own: dict[str, Any] = {"head_dim": facts.integer("global_head_dim", 512, high=1 << 16)}
    kv_heads = facts.raw("num_global_key_value_heads")
    if shared and kv_heads is not None:
        own["num_key_value_heads"] = facts.integer("num_global_key_value_heads", high=1 << 16)
    stated = facts.raw(key)
    if stated is not None:
        if not isinstance(stated, dict):
            raise facts.error(key, f"must be an object, not {shown(stated)}")
        layers = decoders.num_layers(facts)
        own = stated.get(str(layers - 1), {})
        wanted = {str(i): own for i in range(layers) if own and not (windows and windows[i])}
        if stated != wanted:
            raise facts.error(key, "must say the same of every layer that sees all, and no other")
    reader = ConfigReader(own, facts.architecture, f"{key}.")
    heads = reader.integer("num_key_value_heads", local.num_kv_heads, high=1 << 16)
    head_dim = reader.integer("head_dim", local.head_dim, high=1 << 16)
    reader.finish_closed(frozenset())
    if local.num_query_heads % heads:
        raise facts.error(
            "num_attention_heads",
            f"{local.num_query_heads} is not a multiple of {heads} key-value heads",
        )
    return replace(local, num_kv_heads=heads, head_dim=head_dim, values_are_keys=shared)


def _ropes(
    facts: ConfigReader, head_dim: int, local_head_dim: int, max_positions: int
) -> tuple[RopeSpec, RopeSpec]:
    if facts.raw("rope_parameters") is not None:
        return read_ropes(
            facts,
            head_dim=head_dim,
            local_head_dim=local_head_dim,
            max_positions=max_positions,
            defaults=RopeDefaults(theta=1e6),
        )
    part = RopeSpec(1e6, head_dim, scaling=RopeScaling.PROPORTIONAL, proportion=0.25)
    whole = RopeSpec(1e4, local_head_dim)
    rope, local_rope = (replace(one, original_max_positions=max_positions) for one in (part, whole))
    return rope, local_rope


FAMILY = Family(
    name="gemma4",
    architecture="Gemma4ForCausalLM",
    other_names=("Gemma4TextModel",),
    model_type="gemma4_text",
    prefix="model.",
    sources=decoders.names(
        *decoders.FOUR_NORMS,
        *decoders.ATTENTION,
        *decoders.QK_NORMS,
        *decoders.GATED_MLP,
        Source("model.layers.{i}.layer_scalar", ("layers.{i}.stream_scale",)),
    ),
    skips=decoders.SKIPS,
    harmless=words(
        """
        cache_implementation num_experts top_k_experts moe_intermediate_size use_double_wide_mlp
        vocab_size_per_layer_input
        """
    ),
    read=_read,
    sizes={**SIZES, "hidden_size_per_layer_input": 0},
)
