"""The work list of tiled attention on a CPU: made once a step, followed by every layer.

    rows of the step  ->  items (a row, up to query_tile of its queries), most keys first
    items             ->  waves of equal query tile, as many items as scratch allows
    a wave            ->  segments: a key tile of some of its items

Key tiles lie on a fixed grid from an item's *base*: position 0, or under a window the step of keys
in which the window of its first query begins. What is added up first for a row so does not depend
on its neighbours, and keys that are behind the window are not gathered. Because items are sorted by
falling keys, those that reach a key tile are a prefix of the wave, and those that see all of it (no
mask needed) nearly always a prefix of these:

    wave        key tile 0   key tile 1   key tile 2
    item 0      full         full         partial
    item 1      full         partial      -
    item 2      partial      -            -

so that a key tile is at most two segments, and only partial ones pay for a mask. From here on keys
are counted from the base, so that a segment is one whatever its items' bases are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.footprint import ceil_div, round_up
from kernels.footprint.attention import (
    QUERY_TILES,
    AttentionShape,
    ScratchRegions,
    items_per_wave,
    query_tile_for,
    scratch_regions,
)


@dataclass(frozen=True, slots=True)
class Segment:
    """One key tile of the items ``first : last`` of a wave."""

    first: int
    last: int
    key_start: int  # of the tile, from the items' bases
    width: int  # tokens gathered for each item: whole blocks
    hides: Tensor | None  # [width] float32 positions of its keys, where a query sees not all
    stale: Tensor | None  # [N] int64: rows of head_dim in what is gathered that are to be zeroed


@dataclass(frozen=True, slots=True)
class ItemBlocks:
    """Where the blocks of n items are among their rows' blocks; all int64."""

    rows: Tensor  # [n]
    end: Tensor  # [n, 1] behind the last that the row's context reaches
    base: Tensor | None  # [n, 1] with a window: the block in which the item's key tiles begin
    first: Tensor | None  # [n, 1] with a window: the first that a query sees

    def columns(self, segment: Segment, block_size: int) -> Tensor:
        """[items, blocks] of what a segment brings. A block that no query sees, behind the window
        or past the context, is never looked up: it may be another row's by now, and its entry
        anything. The first that is seen stands in for it, and is masked there."""
        part = slice(segment.first, segment.last)
        start = segment.key_start // block_size
        blocks = torch.arange(start, start + segment.width // block_size)
        if self.base is None or self.first is None:
            return torch.where(blocks < self.end[part], blocks, 0)
        blocks, first = self.base[part] + blocks, self.first[part]
        return torch.where((blocks >= first) & (blocks < self.end[part]), blocks, first)


@dataclass(frozen=True, slots=True)
class Wave:
    query_tile: int
    items: int
    blocks: ItemBlocks
    query_ids: Tensor  # [items * query_tile] int64 token ids; padding repeats the item's last
    positions: Tensor  # [items, 1, query_tile, 1] float32, from the base
    limits: Tensor  # likewise: the last key that each query sees, or the middle where there is ...
    reach: Tensor | None  # likewise: with a window, how far from the middle it sees
    valid: tuple[Tensor, Tensor] | None  # (item, offset) of the queries that are no padding
    token_ids: Tensor  # [valid] int64: where their results go
    segments: tuple[Segment, ...]
    regions: ScratchRegions


@dataclass(frozen=True, slots=True)
class WorkList:
    """The waves of layers with one window."""

    shape: AttentionShape
    waves: tuple[Wave, ...]

    @property
    def scratch_bytes(self) -> int:
        """The most that a wave needs."""
        return max((wave.regions.total for wave in self.waves), default=0)


@dataclass(frozen=True, slots=True)
class StepRows:
    """Rows whose tokens are ``bounds[b] : bounds[b + 1]``, the last ones of ``contexts[b]``; not
    ``causal``, a row's tokens are all of its context and see each other."""

    bounds: list[int]
    contexts: list[int]
    causal: bool
    shape: AttentionShape

    def plan(self, window: int) -> WorkList:
        """The work of layers with this window, 0 for none."""
        shape = self.shape
        buckets: dict[int, list[_Item]] = {tile: [] for tile in QUERY_TILES}
        for row, context in enumerate(self.contexts):
            for tile, item in self._cut(row, context, window):
                buckets[tile].append(item)
        waves = []
        for tile, items in buckets.items():
            items.sort(key=lambda item: (-item.end, item.token))
            step = items_per_wave(shape, tile)
            for start in range(0, len(items), step):
                waves.append(_wave(items[start : start + step], tile, window, self.causal, shape))
        return WorkList(shape, tuple(waves))

    def _cut(self, row: int, context: int, window: int) -> Iterator[tuple[int, _Item]]:
        """A row's tokens in the largest tiles, then the rest in the smallest tile that holds it."""
        token, last = self.bounds[row], self.bounds[row + 1]
        while token < last:
            tile = query_tile_for(last - token)
            count = min(tile, last - token)
            yield tile, self._item(row, token, count, context - (last - token), context, window)
            token += count

    def _item(
        self, row: int, token: int, count: int, position: int, context: int, window: int
    ) -> _Item:
        final = position + count - 1
        full_end, end = (position + 1, final + 1) if self.causal else (context, context)
        oldest = full_start = 0
        if window:
            oldest, full_start = max(0, position - window + 1), max(0, final - window + 1)
            full_end, end = min(full_end, position + window), min(end, final + window)
        base = oldest // self.shape.key_step * self.shape.key_step
        return _Item(
            row=row,
            token=token,
            count=count,
            context=context,
            oldest=oldest,
            base=base,
            position=position - base,
            full_start=full_start - base,
            full_end=full_end - base,
            end=end - base,
        )


@dataclass(frozen=True, slots=True)
class _Item:
    row: int
    token: int  # its first query's place in the step
    count: int  # queries, at most the tile
    context: int  # keys that its row has
    oldest: int  # key that its first query sees
    base: int  # where its key tiles begin; from here on, keys are counted from it
    position: int  # of its first query
    full_start: int  # keys full_start : full_end are seen by all of its queries
    full_end: int
    end: int  # behind the last key that its last query sees

    def sees_all(self, key_start: int, key_end: int) -> bool:
        return self.full_start <= key_start and self.full_end >= key_end


def _wave(items: list[_Item], tile: int, window: int, causal: bool, shape: AttentionShape) -> Wave:
    size = shape.block_size
    facts = [(item.token, item.position, item.row, ceil_div(item.context, size)) for item in items]
    tokens, positions, rows, end = torch.tensor(list(zip(*facts, strict=True))).unbind()
    blocks = ItemBlocks(rows, end.unsqueeze(1), None, None)
    if window:
        where = [(item.base // size, item.oldest // size) for item in items]
        base, first = torch.tensor(where).unsqueeze(2).unbind(1)
        blocks = ItemBlocks(rows, end.unsqueeze(1), base, first)
    valid: tuple[Tensor, Tensor] | None = None
    if tile == 1:  # as many queries as items
        query_ids = token_ids = tokens
    else:
        counts = torch.tensor([item.count for item in items]).unsqueeze(1)
        offsets = torch.arange(tile)
        real = torch.minimum(offsets, counts - 1)
        ids = tokens.unsqueeze(1) + real
        positions = positions.unsqueeze(1) + real
        item_ids, offset_ids = (offsets < counts).nonzero(as_tuple=True)
        valid = (item_ids, offset_ids)
        query_ids, token_ids = ids.view(-1), ids[item_ids, offset_ids]
    at = positions.view(-1, 1, tile, 1).float()  # exact: a position is below 2**22, with halves
    limits, reach = at, None
    if not causal:
        last = torch.tensor([float(item.context - item.base - 1) for item in items])
        limits = last.view(-1, 1, 1, 1).expand(-1, -1, tile, -1)
    if window:
        low = at - (window - 1)
        high = limits if causal else torch.minimum(limits, at + (window - 1))
        limits, reach = (low + high) / 2, (high - low) / 2
    return Wave(
        query_tile=tile,
        items=len(items),
        blocks=blocks,
        query_ids=query_ids,
        positions=at,
        limits=limits,
        reach=reach,
        valid=valid,
        token_ids=token_ids,
        segments=tuple(_segments(items, shape)),
        regions=scratch_regions(shape, tile),
    )


def _segments(items: list[_Item], shape: AttentionShape) -> Iterator[Segment]:
    ends = torch.tensor([item.context - item.base for item in items]).unsqueeze(1)
    for key_start in range(0, items[0].end, shape.key_tile):
        key_end = key_start + shape.key_tile
        active = sum(item.end > key_start for item in items)
        full = next((i for i in range(active) if not items[i].sees_all(key_start, key_end)), active)
        for first, last in ((0, full), (full, active)):
            if first == last:
                continue
            longest = min(items[first].end, key_end) - key_start
            width = round_up(longest, shape.key_step)
            yield Segment(
                first=first,
                last=last,
                key_start=key_start,
                width=width,
                hides=torch.arange(key_start, key_start + width).float() if first == full else None,
                stale=_stale_rows(items[first:last], ends[first:last], key_start, width, shape),
            )


def _stale_rows(
    items: list[_Item], ends: Tensor, key_start: int, width: int, shape: AttentionShape
) -> Tensor | None:
    """Slots that hold no token of the row: the tail of the block where its context ends.

    What is brought in place of blocks that no query sees is masked but finite, unless the block
    that stands in is the very one where the context ends: then every copy of it has a tail.
    ``ends`` [items, 1] are the contexts, from the bases. Rows of head_dim are counted over
    [2, items, Hkv, width].
    """
    key_end = key_start + width
    if all(item.context - item.base >= key_end for item in items):
        return None
    size = shape.block_size
    slots = torch.arange(key_start, key_end)
    block_ends = (ends + size - 1) // size * size
    firsts = [item.oldest // size * size - item.base for item in items]
    if any(firsts):
        stands_in = torch.tensor(firsts).unsqueeze(1)
        short = ends < stands_in + size
        tails = (slots >= ends) & (slots < block_ends) | short & (slots < stands_in)
        tails |= short & (slots >= block_ends)
    else:
        tails = (slots >= ends) & ((slots < block_ends) | (ends < size))
    items_at, offsets = tails.nonzero(as_tuple=True)
    if not items_at.shape[0]:
        return None
    heads = torch.arange(shape.num_kv_heads).view(1, -1, 1)
    halves = torch.arange(2).view(-1, 1, 1) * len(items)
    return (((halves + items_at) * shape.num_kv_heads + heads) * width + offsets).view(-1)
