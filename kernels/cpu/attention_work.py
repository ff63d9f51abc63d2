"""The work list of tiled attention on a CPU: made once a step, followed by every layer.

    rows of the step  ->  items (a row, up to query_tile of its queries), longest context first
    items             ->  waves of equal query tile, as many items as scratch allows
    a wave            ->  segments: a key tile of some of its items

Key tiles lie on a fixed grid from position 0, so that what is added up first for a row does not
depend on its neighbours. Because items are sorted by falling context, those that reach a key tile
are a prefix of the wave, and those that see all of it (no mask needed) nearly always a prefix of
these:

    wave        key tile 0   key tile 1   key tile 2
    item 0      full         full         partial
    item 1      full         partial      -
    item 2      partial      -            -

so that a key tile is at most two segments, and only partial ones pay for a mask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.footprint.attention import (
    QUERY_TILES,
    AttentionShape,
    ScratchRegions,
    items_per_wave,
    query_tile_for,
    scratch_regions,
)

# (rows [m] int64, first column, columns) -> the gather index of every (row, block), [m, columns]
BlockLookup = Callable[[Tensor, int, int], Tensor]


@dataclass(frozen=True, slots=True)
class Segment:
    """One key tile of the items ``first : last`` of a wave."""

    first: int
    last: int
    key_start: int
    width: int  # tokens gathered for each item: whole blocks
    gather: Tensor  # [parts * items * Hkv * blocks] int64: rows of the gather's source
    hides: Tensor | None  # [width] float32 positions of its keys, where a query sees not all
    stale: Tensor | None  # [N] int64: rows of head_dim in what is gathered that are to be zeroed


@dataclass(frozen=True, slots=True)
class Wave:
    query_tile: int
    items: int
    query_ids: Tensor  # [items * query_tile] int64 token ids; padding repeats the item's last
    limits: Tensor  # [items, 1, query_tile, 1] float32: the last key that each query sees
    valid: tuple[Tensor, Tensor] | None  # (item, offset) of the queries that are no padding
    token_ids: Tensor  # [valid] int64: where their results go
    segments: tuple[Segment, ...]
    regions: ScratchRegions


@dataclass(frozen=True, slots=True)
class AttentionWork:
    shape: AttentionShape
    waves: tuple[Wave, ...]
    scratch_bytes: int  # the most that a wave needs


@dataclass(frozen=True, slots=True)
class _Item:
    row: int
    token: int  # its first query's place in the step
    count: int  # queries, at most the tile
    seen_first: int  # keys that its first query sees
    seen_last: int  # keys that its last query sees
    context: int  # keys that its row has


def plan(
    bounds: list[int],
    contexts: list[int],
    causal: bool,
    shape: AttentionShape,
    lookup: BlockLookup,
) -> AttentionWork:
    """The work of rows whose tokens are ``bounds[b] : bounds[b + 1]``."""
    buckets: dict[int, list[_Item]] = {tile: [] for tile in QUERY_TILES}
    for row, context in enumerate(contexts):
        for tile, item in _cut(row, bounds[row], bounds[row + 1], context, causal):
            buckets[tile].append(item)
    waves = []
    for tile, items in buckets.items():
        items.sort(key=lambda item: (-item.seen_last, item.token))
        step = items_per_wave(shape, tile)
        for start in range(0, len(items), step):
            waves.append(_wave(items[start : start + step], tile, shape, lookup))
    scratch_bytes = max((wave.regions.total for wave in waves), default=0)
    return AttentionWork(shape, tuple(waves), scratch_bytes)


def _cut(row: int, start: int, end: int, context: int, causal: bool) -> Iterator[tuple[int, _Item]]:
    """A row's tokens in the largest tiles, then the rest in the smallest tile that holds it."""
    token = start
    while token < end:
        tile = query_tile_for(end - token)
        count = min(tile, end - token)
        seen = context - (end - token) + 1 if causal else context
        last = seen + count - 1 if causal else context
        yield tile, _Item(row, token, count, seen, last, context)
        token += count


def _wave(items: list[_Item], tile: int, shape: AttentionShape, lookup: BlockLookup) -> Wave:
    tokens = torch.tensor([item.token for item in items])
    valid: tuple[Tensor, Tensor] | None = None
    if tile == 1:  # as many queries as items
        query_ids = token_ids = tokens
        limits = torch.tensor([float(item.seen_last - 1) for item in items])
    else:
        counts = torch.tensor([item.count for item in items]).unsqueeze(1)
        seen_first = torch.tensor([item.seen_first for item in items]).unsqueeze(1)
        seen_last = torch.tensor([item.seen_last for item in items]).unsqueeze(1)
        offsets = torch.arange(tile)
        ids = tokens.unsqueeze(1) + torch.minimum(offsets, counts - 1)
        limits = (torch.minimum(seen_first + offsets, seen_last) - 1).float()
        item_ids, offset_ids = (offsets < counts).nonzero(as_tuple=True)
        valid = (item_ids, offset_ids)
        query_ids, token_ids = ids.view(-1), ids[item_ids, offset_ids]
    return Wave(
        query_tile=tile,
        items=len(items),
        query_ids=query_ids,
        limits=limits.view(-1, 1, tile, 1),  # exact: a position is below 2**24
        valid=valid,
        token_ids=token_ids,
        segments=tuple(_segments(items, shape, lookup)),
        regions=scratch_regions(shape, tile),
    )


def _segments(items: list[_Item], shape: AttentionShape, lookup: BlockLookup) -> Iterator[Segment]:
    rows = torch.tensor([item.row for item in items])
    contexts = torch.tensor([item.context for item in items])
    for key_start in range(0, items[0].seen_last, shape.key_tile):
        key_end = key_start + shape.key_tile
        active = sum(item.seen_last > key_start for item in items)
        full = next((i for i in range(active) if items[i].seen_first < key_end), active)
        for first, last in ((0, full), (full, active)):
            if first == last:
                continue
            longest = min(items[first].seen_last, key_end) - key_start
            width = -(-longest // shape.key_step) * shape.key_step
            yield _segment(
                rows[first:last],
                contexts[first:last],
                first,
                key_start,
                width,
                shape,
                lookup,
                masked=first == full,
            )


def _segment(
    rows: Tensor,
    contexts: Tensor,
    first: int,
    key_start: int,
    width: int,
    shape: AttentionShape,
    lookup: BlockLookup,
    *,
    masked: bool,
) -> Segment:
    blocks = width // shape.block_size
    columns = key_start // shape.block_size
    gather = lookup(rows, columns, blocks)
    return Segment(
        first=first,
        last=first + rows.shape[0],
        key_start=key_start,
        width=width,
        gather=gather,
        hides=torch.arange(key_start, key_start + width).float() if masked else None,
        stale=_stale_rows(contexts, key_start, width, shape),
    )


def _stale_rows(
    contexts: Tensor, key_start: int, width: int, shape: AttentionShape
) -> Tensor | None:
    """Slots that hold no token of the row: the tail of the block where its context ends.

    What the lookups bring in place of blocks behind that one is a full block of the row, masked
    but finite, unless the context ends in the very first block: then every copy of it has a tail.
    Rows of head_dim are counted over [2, items, Hkv, width].
    """
    slots = torch.arange(key_start, key_start + width)
    ends = contexts.unsqueeze(1)
    block_ends = (ends + shape.block_size - 1) // shape.block_size * shape.block_size
    tails = (slots >= ends) & ((slots < block_ends) | (ends < shape.block_size))
    items, offsets = tails.nonzero(as_tuple=True)
    if not items.shape[0]:
        return None
    heads = torch.arange(shape.num_kv_heads).view(1, -1, 1)
    halves = torch.arange(2).view(-1, 1, 1) * contexts.shape[0]
    return (((halves + items) * shape.num_kv_heads + heads) * width + offsets).view(-1)


def paged_lookup(block_tables: Tensor, contexts: list[int], shape: AttentionShape) -> BlockLookup:
    """Rows of a cache layer seen as [num_blocks * 2 * Hkv, block_size * head_dim].

    A block past a row's context is never looked up in the table, whose entry may be anything: the
    row's own first block stands in for it.
    """
    used = torch.tensor([-(-context // shape.block_size) for context in contexts])
    heads = torch.arange(shape.num_kv_heads).unsqueeze(1)
    halves = torch.arange(2).view(2, 1, 1, 1)

    def lookup(rows: Tensor, first: int, count: int) -> Tensor:
        columns = torch.arange(first, first + count)
        columns = torch.where(columns < used[rows].unsqueeze(1), columns, 0)
        blocks = block_tables[rows.unsqueeze(1), columns].long()
        gather = (blocks.unsqueeze(1) * 2 + halves) * shape.num_kv_heads + heads
        return gather.view(-1)

    return lookup


def varlen_lookup(bounds: list[int], shape: AttentionShape) -> BlockLookup:
    """Rows of keys (or values) seen as [T * Hkv, head_dim]; the block is one token."""
    starts = torch.tensor(bounds[:-1])
    lengths = torch.tensor(bounds[1:]) - starts
    heads = torch.arange(shape.num_kv_heads).unsqueeze(1)

    def lookup(rows: Tensor, first: int, count: int) -> Tensor:
        columns = torch.arange(first, first + count)
        columns = torch.where(columns < lengths[rows].unsqueeze(1), columns, 0)
        tokens = starts[rows].unsqueeze(1) + columns
        return (tokens.unsqueeze(1) * shape.num_kv_heads + heads).view(-1)

    return lookup
