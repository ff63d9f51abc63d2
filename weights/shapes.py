"""A shape: a model described by a TOML or JSON document of its own, read strictly. No torch.

The presets (weights/presets) and what a user writes are the same kind of document; its keys are in
weights.shape_keys. An unknown key is refused by name, and so is one that contradicts another.
"""

from __future__ import annotations

import difflib
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from weights.config.facts import ConfigReader
from weights.errors import CheckpointError
from weights.shape_keys import (
    ACTIVATIONS,
    DTYPES,
    NORMS,
    PARALLEL,
    PLACEMENTS,
    POSITIONS,
    QK_NORMS,
    SHAPE_KEYS,
)
from weights.spec import (
    AttentionSpec,
    ExpertsSpec,
    LatentSpec,
    LayerInputSpec,
    MlpSpec,
    ModelSpec,
    NormSpec,
    PositionKind,
    RopeSpec,
)
from weights.strict_json import parse_object, shown

MAX_SHAPE_BYTES = 1 << 20
_EPSILON = 1e-5  # no memory depends on it
_MOST_LAYERS = 1 << 14
_MOST_HEADS = 1 << 16
_MOST_EXPERTS = 1 << 14
_MIXTURE_KEYS = (
    "experts_per_token",
    "expert_size",
    "shared_expert_size",
    "shared_expert_gate",
    "router_bias",
    "num_dense_layers",
)


def read_document(path: Path) -> dict[str, Any]:
    """The document in a .json or .toml file. Raises CheckpointError that names what is wrong."""
    if path.suffix not in (".toml", ".json"):
        raise CheckpointError(f"{path}: is neither a .toml nor a .json file")
    data = _read_bounded(path)
    if path.suffix == ".json":
        return parse_object(data, f"{path}:")
    try:
        return tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # of TOML, of UTF-8, of thousands of digits
        raise CheckpointError(f"{path}: is not TOML: {str(error)[:120]}") from None


def _read_bounded(path: Path) -> bytes:
    """A regular file's bytes: a pipe could keep the reader waiting, a device has no end."""
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise CheckpointError(f"{path}: is a folder; --shape takes a file")
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(f"{path}: is not a regular file")
        with path.open("rb") as stream:
            data = stream.read(MAX_SHAPE_BYTES + 1)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from None
    if len(data) > MAX_SHAPE_BYTES:
        raise CheckpointError(f"{path}: {status.st_size} bytes; at most {MAX_SHAPE_BYTES} are read")
    return data


def shape_spec(document: Mapping[str, Any], where: str) -> ModelSpec:
    """The model that a document describes. ``where`` begins the messages.

    Raises CheckpointError that names the key: unknown, missing, mistyped, absurd or contradictory.
    """
    for key in document:
        if key not in SHAPE_KEYS:
            near = difflib.get_close_matches(key, SHAPE_KEYS, n=2)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise CheckpointError(f"{where}: unknown key {shown(key)}{hint}")
    facts = ConfigReader(document, "a shape", file=where)
    hidden = facts.integer("hidden_size")
    layers = facts.integer("num_layers", high=_MOST_LAYERS)
    local = _attention(facts, hidden)
    attention = _global_attention(facts, local)
    positions = facts.integer("max_positions", high=1 << 31)
    windows = _windows(facts, layers)
    position = facts.choice("position", POSITIONS, "rotary")
    rotary = position is PositionKind.ROTARY
    rope = _rope(facts, "rope_theta", attention, positions) if rotary else RopeSpec()
    own_theta = rotary and "local_rope_theta" in facts
    if local != attention and not windows:
        raise facts.error("window", "is needed where layers without one have heads of their own")
    for key in ("source", "note"):  # for people; but texts
        _text(facts, key, "")
    return ModelSpec(
        family=_text(facts, "family", "shape"),
        architecture="shape",
        vocab_size=facts.integer("vocab_size"),
        hidden_size=hidden,
        num_layers=layers,
        attention=attention,
        mlp=MlpSpec(
            intermediate_size=facts.integer("intermediate_size"),
            activation=facts.choice("activation", ACTIVATIONS, "silu"),
            gated=facts.flag("gated", True),
            bias=facts.flag("mlp_bias", False),
        ),
        norm=NormSpec(
            kind=facts.choice("norm", NORMS, "rms"),
            epsilon=_EPSILON,
            placement=facts.choice("norm_placement", PLACEMENTS, "pre"),
            bias=facts.flag("norm_bias", True),
            weight=facts.flag("norm_weight", True),
        ),
        position=position,
        max_positions=positions,
        tied_unembedding=facts.flag("tied_unembedding", False),
        parameter_dtype=facts.choice("dtype", DTYPES, "bfloat16"),
        rope=rope,
        parallel=facts.choice("parallel", PARALLEL, "none"),
        experts=_experts(facts, layers),
        windows=windows,
        local_rope=_rope(facts, "local_rope_theta", local, positions) if own_theta else None,
        local_attention=None if local == attention else local,
        stream_scale=facts.flag("stream_scale", False),
        num_kv_shared_layers=_shared_layers(facts, windows, layers),
        shared_intermediate_size=facts.integer("shared_intermediate_size", 0, low=0),
        layer_input=_layer_input(facts),
        position_offset=facts.integer("position_offset", 0, low=0),
        embedding_scale=facts.number("embedding_scale", 1.0),
        embedding_norm=facts.flag("embedding_norm", False),
        logit_soft_cap=_cap(facts, "logit_soft_cap"),
        unembedding_bias=facts.flag("unembedding_bias", False),
        embedding_size=facts.integer("embedding_size", 0, low=0),
    )


def _attention(facts: ConfigReader, hidden: int) -> AttentionSpec:
    query = facts.integer("num_query_heads", high=_MOST_HEADS)
    kv = facts.integer("num_kv_heads", query, high=_MOST_HEADS)
    if query % kv:
        raise facts.error("num_query_heads", f"{query} is not a multiple of num_kv_heads {kv}")
    if "head_dim" not in facts and hidden % query:
        raise facts.error(
            "hidden_size", f"{hidden} is not a multiple of num_query_heads {query}; give head_dim"
        )
    head_dim = facts.integer("head_dim", max(1, hidden // query), high=1 << 16)
    return AttentionSpec(
        num_query_heads=query,
        num_kv_heads=kv,
        head_dim=head_dim,
        scale=head_dim**-0.5,
        qkv_bias=facts.flag("qkv_bias", False),
        output_bias=facts.flag("output_bias", False),
        qk_norm=facts.choice("qk_norm", QK_NORMS, "none"),
        soft_cap=_cap(facts, "attention_soft_cap"),
        sinks=facts.flag("sinks", False),
        value_norm=facts.flag("value_norm", False),
        latent=_latent(facts, query, kv, head_dim),
    )


def _global_attention(facts: ConfigReader, local: AttentionSpec) -> AttentionSpec:
    """The heads of layers without a window."""
    key = "global_num_kv_heads"
    kv = facts.integer(key, local.num_kv_heads, high=_MOST_HEADS)
    if local.num_query_heads % kv:
        raise facts.error("num_query_heads", f"{local.num_query_heads} is not a multiple of {key}")
    return replace(
        local,
        num_kv_heads=kv,
        head_dim=facts.integer("global_head_dim", local.head_dim, high=1 << 16),
        values_are_keys=facts.flag("values_are_keys", False),
    )


def _latent(facts: ConfigReader, query: int, kv: int, head_dim: int) -> LatentSpec | None:
    rank = facts.integer("kv_lora_rank", 0, low=0)
    if not rank:
        for key in ("q_lora_rank", "qk_rope_head_dim", "v_head_dim"):
            if key in facts:
                raise facts.error(key, "needs kv_lora_rank")
        return None
    if query != kv:
        raise facts.error(
            "kv_lora_rank", "gives every query head keys of its own: one kv head each"
        )
    for key in ("qkv_bias", "qk_norm"):
        if key in facts:
            raise facts.error(key, "is not planned beside kv_lora_rank")
    return LatentSpec(
        kv_rank=rank,
        rope_dim=facts.integer("qk_rope_head_dim", high=head_dim),
        value_dim=facts.integer("v_head_dim", high=1 << 16),
        query_rank=facts.integer("q_lora_rank", 0, low=0),
    )


def _rope(facts: ConfigReader, theta: str, attention: AttentionSpec, positions: int) -> RopeSpec:
    turned = attention.latent.rope_dim if attention.latent else attention.head_dim
    dim = facts.integer("rotary_dim", turned, low=2, high=attention.head_dim)
    if dim % 2:
        raise facts.error("rotary_dim", f"is {dim}; channels turn in pairs: it must be even")
    base = facts.number(theta, 10000.0, above=1.0)
    return RopeSpec(theta=base, dim=dim, original_max_positions=positions)


def _windows(facts: ConfigReader, layers: int) -> tuple[int, ...]:
    window = facts.integer("window", 0, low=0, high=1 << 31)
    every = facts.integer("full_every", 0, low=0, high=layers)
    if not window:
        if every:
            raise facts.error("full_every", "needs a window for the other layers")
        return ()
    return tuple(0 if every and layer % every == 0 else window for layer in range(1, layers + 1))


def _shared_layers(facts: ConfigReader, windows: tuple[int, ...], layers: int) -> int:
    key = "num_kv_shared_layers"
    shared = facts.integer(key, 0, low=0, high=layers - 1)
    if windows and set(windows[: layers - shared]) != set(windows):
        raise facts.error(key, f"is {shared}: no layer before these keeps what some of them read")
    return shared


def _layer_input(facts: ConfigReader) -> LayerInputSpec | None:
    size = facts.integer("layer_input_size", 0, low=0, high=1 << 16)
    return LayerInputSpec(size, facts.integer("vocab_size")) if size else None


def _experts(facts: ConfigReader, layers: int) -> ExpertsSpec | None:
    count = facts.integer("num_experts", 0, low=0, high=_MOST_EXPERTS)
    if not count:
        for key in _MIXTURE_KEYS:
            if key in facts:
                raise facts.error(key, "needs num_experts")
        return None
    return ExpertsSpec(
        count=count,
        chosen=facts.integer("experts_per_token", high=count),
        intermediate_size=facts.integer("expert_size"),
        shared_size=facts.integer("shared_expert_size", 0, low=0),
        shared_gate=facts.flag("shared_expert_gate", False),
        router_bias=facts.flag("router_bias", False),
        num_dense_layers=facts.integer("num_dense_layers", 0, low=0, high=layers),
    )


def _cap(facts: ConfigReader, key: str) -> float | None:
    return facts.number(key) if key in facts else None


def _text(facts: ConfigReader, key: str, default: str) -> str:
    value = facts.raw(key)
    if value is None:
        return default
    if not isinstance(value, str) or not value.strip():
        raise facts.error(key, "must be a text that is not empty")
    return value
