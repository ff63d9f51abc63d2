"""The paged cache of a model: which layers share pages, the bytes of a token, and the shape of the
attention that reads it. No torch.

Layers that look back alike could share one block table, but one pool serves every group, and its
pages are equal. So layers are grouped by so many at a time that every group's block is one page:

    5 full layers, 30 with a window -> groups of 5: 1 full, 6 windowed

Layers whose heads keep unlike numbers of elements share a page all the same: it has *places*, each
of as many elements a token as a whole number of layers of either kind keeps.

    10 full layers of 4,096 elements, 50 windowed ones of 8,192 -> 5 places of 8,192 a page:
    1 group of 10 full layers, 10 groups of 5 windowed ones

A group that has no layers for all of its page leaves the rest of it empty.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from kernels.footprint.attention import AttentionShape
from server.engine.engine_config import CacheConfig, EngineConfig
from server.engine.kv_spec import GroupKind, KVCacheGroup, KVCacheSpec
from server.memory.kinds import ELEMENT_BYTES
from server.units import ceil_div
from weights.formats import QUANTISED, tensor_bytes
from weights.spec import ModelSpec, PositionKind

_MODELS = 16  # whose groups are remembered: a plan asks for one model's at every size that it tries


def kv_cache_spec(model: ModelSpec, cache: CacheConfig) -> KVCacheSpec:
    """The paged cache of ``model``.

    One group over all layers where all look back alike.
    """
    groups = tuple(_groups(model, page_token_bytes(model, cache.format), cache.block_size))
    return KVCacheSpec(groups=groups, num_blocks=cache.num_blocks)


def layer_kv_bytes(model: ModelSpec, layer: int, format: str) -> int:
    """Bytes that one token keeps in the layer: K and V of every key-value head, or a latent row. A
    quantised format has a scale for each of them."""
    if format in QUANTISED:
        return QUANTISED[format].matrix_bytes(*model.layer_attention(layer).cached_rows)
    return tensor_bytes((model.kv_elements(layer),), format)


def page_token_bytes(model: ModelSpec, format: str) -> int:
    """Bytes that a page has for each of its tokens: what all layers of a group keep, and what none
    uses. Of a quantised format there are as many scales as the narrowest heads need."""
    places, elements = pages(model)
    if format in QUANTISED:
        width = narrowest_rows(model)
        return places * QUANTISED[format].matrix_bytes(elements // width, width)
    return places * tensor_bytes((elements,), format)


def narrowest_rows(model: ModelSpec) -> int:
    """Channels of the narrowest row that a layer keeps."""
    return min(model.layer_attention(kind).cached_rows[1] for kind in model.kinds_of_layers)


@lru_cache(maxsize=_MODELS)
def windows_of(model: ModelSpec) -> tuple[int, ...]:
    """The different windows of the model's layers, in tokens, 0 for layers that see all."""
    return tuple(sorted({model.window(layer) for layer in range(model.num_layers)}))


def attention_shapes(model: ModelSpec, config: EngineConfig) -> tuple[AttentionShape, ...]:
    """The largest step as attention sees it in each of ``kinds_of_layers``."""
    return tuple(attention_shape(model, layer, config) for layer in model.kinds_of_layers)


def attention_shape(model: ModelSpec, layer: int, config: EngineConfig) -> AttentionShape:
    """The largest step as attention sees it in that layer and in all with such heads."""
    sizes, attention = config.scheduler, model.layer_attention(layer)
    alike = (
        i for i in range(model.num_layers) if model.layer_attention(i).heads == attention.heads
    )
    return AttentionShape(
        num_query_heads=attention.num_query_heads,
        num_kv_heads=attention.num_kv_heads,
        head_dim=attention.head_dim,
        block_size=config.cache.block_size,
        element_bytes=ELEMENT_BYTES[config.model.format],
        max_num_seqs=sizes.max_num_seqs,
        max_num_batched_tokens=sizes.max_num_batched_tokens,
        max_model_len=sizes.max_model_len,
        batch_invariant=config.model.batch_invariant,
        windows=tuple(sorted({model.window(i) for i in alike})),
        soft_cap=attention.soft_cap is not None,
        alibi=model.position is PositionKind.ALIBI,
        num_threads=config.model.num_threads,
        block_rows=pages(model)[1] // attention.head_dim,
    )


@lru_cache(maxsize=_MODELS)
def pages(model: ModelSpec) -> tuple[int, int]:
    """(places of a page, elements that a place has for each token)."""
    elements = math.lcm(*(model.kv_elements(layer) for layer in range(model.num_layers)))
    places = math.gcd(
        *(
            ceil_div(len(alike) * model.kv_elements(alike[0]), elements)
            for alike in _layers_alike(model)
        )
    )
    return places, elements


@lru_cache(maxsize=_MODELS)
def layer_groups(model: ModelSpec) -> tuple[tuple[int, ...], ...]:
    """The layers of each group, in the order in which block tables are held."""
    places, elements = pages(model)
    groups = []
    for alike in _layers_alike(model):
        size = places * (elements // model.kv_elements(alike[0]))
        groups += [tuple(alike[start : start + size]) for start in range(0, len(alike), size)]
    return tuple(groups)


def _layers_alike(model: ModelSpec) -> Iterable[list[int]]:
    """Layers that look back alike, by their windows; their heads are alike, too. Those that read
    another's keys and values keep nothing."""
    layers: dict[int, list[int]] = {window: [] for window in windows_of(model)}
    for layer in range(model.num_layers):
        if model.kv_layer(layer) == layer:
            layers[model.window(layer)].append(layer)
    return layers.values()


@dataclass(frozen=True, slots=True)
class CachePart:
    """Where a layer's keys and values lie in the pool: in its group's pages, in one place of these,
    there behind so many elements of other layers for each token."""

    group: int
    place: int
    elements_before: int


def cache_part(model: ModelSpec, layer: int) -> CachePart:
    """Raises ValueError for a layer that the model has not."""
    layer = model.kv_layer(layer)
    for group, layers in enumerate(layer_groups(model)):
        if layer in layers:
            size = model.kv_elements(layer)
            place, part = divmod(layers.index(layer), pages(model)[1] // size)
            return CachePart(group, place, part * size)
    raise ValueError(f"the model has no layer {layer}")


def _groups(model: ModelSpec, page_bytes: int, block_size: int) -> Iterator[KVCacheGroup]:
    for layers in layer_groups(model):
        window = model.window(layers[0])
        yield KVCacheGroup(
            kind=_kind(model, window),
            layer_ids=layers,
            bytes_per_token=page_bytes,
            block_size=block_size,
            window=window or None,
        )


def _kind(model: ModelSpec, window: int) -> GroupKind:
    if model.attention.latent is not None:
        return GroupKind.LATENT
    return GroupKind.WINDOW if window else GroupKind.FULL
