"""The paged cache of a model: which layers share pages, the bytes of a token, and the shape of the
attention that reads it. No torch.

Layers that look back alike could share one block table, but one pool serves every group, and its
pages are equal. So layers are grouped by so many at a time that every group's block is one page:

    5 full layers, 30 with a window -> groups of 5: 1 full, 6 windowed
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from kernels.footprint.attention import AttentionShape
from server.engine.engine_config import CacheConfig, EngineConfig
from server.engine.kv_spec import GroupKind, KVCacheGroup, KVCacheSpec
from server.memory.kinds import ELEMENT_BYTES
from weights.formats import QUANTISED, tensor_bytes
from weights.spec import ModelSpec, PositionKind


def kv_cache_spec(model: ModelSpec, cache: CacheConfig) -> KVCacheSpec:
    """The paged cache of ``model``.

    One group over all layers where all look back alike.
    """
    groups = tuple(_groups(model, layer_kv_bytes(model, cache.format), cache.block_size))
    return KVCacheSpec(groups=groups, num_blocks=cache.num_blocks)


def layer_kv_bytes(model: ModelSpec, format: str) -> int:
    """Bytes that one token keeps in one layer: K and V of every key-value head, or a latent row. A
    quantised format has a scale for each of them."""
    if format in QUANTISED:
        return QUANTISED[format].matrix_bytes(*model.attention.cached_rows)
    return tensor_bytes((model.kv_elements_per_token,), format)


def windows_of(model: ModelSpec) -> tuple[int, ...]:
    """The different windows of the model's layers, in tokens, 0 for layers that see all."""
    return tuple(sorted({model.window(layer) for layer in range(model.num_layers)}))


def attention_shape(model: ModelSpec, config: EngineConfig) -> AttentionShape:
    """The largest step as attention sees it."""
    sizes = config.scheduler
    return AttentionShape(
        num_query_heads=model.attention.num_query_heads,
        num_kv_heads=model.attention.num_kv_heads,
        head_dim=model.attention.head_dim,
        block_size=config.cache.block_size,
        element_bytes=ELEMENT_BYTES[config.model.format],
        max_num_seqs=sizes.max_num_seqs,
        max_num_batched_tokens=sizes.max_num_batched_tokens,
        max_model_len=sizes.max_model_len,
        batch_invariant=config.model.batch_invariant,
        windows=windows_of(model),
        soft_cap=model.attention.soft_cap is not None,
        alibi=model.position is PositionKind.ALIBI,
        num_threads=config.model.num_threads,
    )


def layer_groups(model: ModelSpec) -> tuple[tuple[int, ...], ...]:
    """The layers of each group, in the order in which block tables are held."""
    layers: dict[int, list[int]] = {window: [] for window in windows_of(model)}
    for layer in range(model.num_layers):
        layers[model.window(layer)].append(layer)
    size = math.gcd(*(len(alike) for alike in layers.values()))
    return tuple(
        tuple(alike[start : start + size])
        for alike in layers.values()
        for start in range(0, len(alike), size)
    )


def group_of_layer(model: ModelSpec, layer: int) -> tuple[int, int]:
    """Its group, and its place among the group's layers: where its pages lie in the pool."""
    for group, layers in enumerate(layer_groups(model)):
        if layer in layers:
            return group, layers.index(layer)
    raise ValueError(f"the model has no layer {layer}")


def _groups(model: ModelSpec, layer_bytes: int, block_size: int) -> Iterator[KVCacheGroup]:
    for layers in layer_groups(model):
        window = model.window(layers[0])
        yield KVCacheGroup(
            kind=_kind(model, window),
            layer_ids=layers,
            bytes_per_token=len(layers) * layer_bytes,
            block_size=block_size,
            window=window or None,
        )


def _kind(model: ModelSpec, window: int) -> GroupKind:
    if model.attention.latent is not None:
        return GroupKind.LATENT
    return GroupKind.WINDOW if window else GroupKind.FULL
