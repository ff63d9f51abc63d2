"""Gemma 4, its text part (Google 2026): Gemma 3's block, but layers that see all have wider heads
than those with a window and rotary frequencies in a part of their pairs, values are normalised, and
each layer's stream is scaled. In the small ones each layer has inputs of its own, and the last ones
read the keys and values of others. Its norms multiply by their weights as they stand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from weights.config import decoders
from weights.config.facts import ConfigReader
from weights.config.family import Family, Skip, Source
from weights.config.keys import words
from weights.config.rope import RopeDefaults, read_ropes
from weights.spec import (
    AttentionSpec,
    LayerInputSpec,
    ModelSpec,
    NormPlacement,
    QkNorm,
    RopeScaling,
    RopeSpec,
)
from weights.strict_json import shown


def _read(facts: ConfigReader) -> ModelSpec:
    facts.only("enable_moe_block", False, "experts beside the MLP are not served yet")
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
    shared = _shared_layers(facts, windows)
    mlp = decoders.read_mlp(facts, key="hidden_activation", default="gelu_pytorch_tanh")
    wide = facts.flag("use_double_wide_mlp", False) and shared
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
        mlp=mlp,
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
        num_kv_shared_layers=shared,
        shared_intermediate_size=2 * mlp.intermediate_size if wide else 0,
        layer_input=_layer_input(facts),
        bos=2,
        eos=1,
    )


def _shared_layers(facts: ConfigReader, windows: tuple[int, ...]) -> int:
    """The last layers, which read the keys and values of the last one before them of their kind."""
    key, layers = "num_kv_shared_layers", decoders.num_layers(facts)
    shared = facts.integer(key, 0, low=0, high=layers - 1)
    if windows and set(windows[: layers - shared]) != set(windows):
        raise facts.error(key, f"is {shared}: no layer before these keeps what some of them read")
    return shared


def _layer_input(facts: ConfigReader) -> LayerInputSpec | None:
    size = facts.integer("hidden_size_per_layer_input", 256, low=0, high=1 << 16)
    rows = facts.integer("vocab_size_per_layer_input", 262144)
    return LayerInputSpec(size, rows) if size else None


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


# Published folders hold them for every layer.
_UNUSED = tuple(
    Skip(f"model.layers.{{i}}.self_attn.{name}.weight", "another layer's keys and values are read")
    for name in ("k_proj", "v_proj", "k_norm")
)

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
        Source("model.embed_tokens_per_layer.weight", ("layer_embedding.weight",)),
        *decoders.linear("model.per_layer_model_projection", "layer_input_projection"),
        *decoders.linear("model.per_layer_projection_norm", "layer_input_norm"),
        *decoders.in_layer("per_layer_input_gate", "layer_input.gate"),
        *decoders.in_layer("per_layer_projection", "layer_input.projection"),
        *decoders.in_layer("post_per_layer_input_norm", "layer_input_norm"),
    ),
    skips=(*decoders.SKIPS, *_UNUSED),
    harmless=words("cache_implementation num_experts top_k_experts moe_intermediate_size"),
    read=_read,
)
