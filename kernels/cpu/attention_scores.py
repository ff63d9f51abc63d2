"""One key tile of tiled attention on a CPU: its weighted values, and the logarithms of the sums of
its weights, by which tiles are merged.

Plain scores, with whatever mask, go through torch's flash attention, which never writes them to
memory. It has no soft cap: under one, scores are made by a product of their own in the workspace.

A masked score gets HIDDEN added, finite on purpose: a query that sees nothing of a key tile then
has a log-sum near HIDDEN there, and the merge gives that tile the weight 0, where minus infinity
would ask for special cases.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.cpu.attention_work import Segment, Wave
from kernels.types import AttentionFeatures

HIDDEN = -1e30

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default


@dataclass(frozen=True, slots=True)
class Scoring:
    """What becomes of q.k; ``slopes`` are [1, Hq, 1, 1] float32."""

    scale: float
    capped: bool  # scores are made in the workspace; a soft_cap of 0 is none
    soft_cap: float
    slopes: Tensor | None

    @classmethod
    def of(cls, scale: float, features: AttentionFeatures, *, capped: bool) -> Scoring:
        slopes = features.alibi_slopes
        return cls(
            scale=scale,
            capped=capped,
            soft_cap=features.soft_cap,
            slopes=None if slopes is None else slopes.view(1, -1, 1, 1),
        )


def attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    segment: Segment,
    wave: Wave,
    how: Scoring,
    room: Tensor,
) -> tuple[Tensor, Tensor]:
    """A segment's result [n, Hkv, M, hd] and log-sums [n, Hkv, M].

    queries are [n, Hkv, M, hd], keys and values [n, Hkv, width, hd]; M are the query heads of a KV
    head, each with the wave's query tile. ``room`` is flat float32, of the scratch's size.
    """
    if how.capped:
        return _capped(queries, keys, values, segment, wave, how, room)
    mask = None
    if how.slopes is not None:
        mask = room[: queries.shape[:3].numel() * segment.width].view(*queries.shape[:3], -1)
        _bias(mask.zero_(), segment, wave, how.slopes)
    elif segment.hides is not None:
        mask = _spread(_hidden(segment, segment.hides, wave), queries.shape[2], room)
    result, log_sums = _flash(queries, keys, values, 0.0, False, attn_mask=mask, scale=how.scale)
    return result, log_sums


def _capped(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    segment: Segment,
    wave: Wave,
    how: Scoring,
    room: Tensor,
) -> tuple[Tensor, Tensor]:
    items, heads, rows, head_dim = queries.shape
    scores = room[: items * heads * rows * segment.width].view(items * heads, rows, -1)
    factor = how.scale / how.soft_cap if how.soft_cap else how.scale
    scores.baddbmm_(queries.flatten(0, 1), keys.flatten(0, 1).mT, beta=0, alpha=factor)
    if how.soft_cap:
        scores.tanh_().mul_(how.soft_cap)
    _bias(scores.view(items, heads, rows, -1), segment, wave, how.slopes)
    highest = scores.amax(dim=-1, keepdim=True)
    total = scores.sub_(highest).exp_().sum(dim=-1, keepdim=True)
    result = torch.bmm(scores, values.flatten(0, 1)).div_(total)
    log_sums = highest.add_(total.log_())
    return result.view(items, heads, rows, head_dim), log_sums.view(items, heads, rows)


def _bias(scores: Tensor, segment: Segment, wave: Wave, slopes: Tensor | None) -> None:
    """Adds ALiBi's and the mask's part to scores [n, Hkv, M, width], in place."""
    by_head = scores.view(scores.shape[0], -1, wave.query_tile, segment.width)
    if slopes is not None:
        keys = torch.arange(segment.key_start, segment.key_start + segment.width)
        distances = keys - wave.positions[segment.first : segment.last]
        by_head.addcmul_(slopes, distances)
    if segment.hides is not None:
        by_head.add_(_hidden(segment, segment.hides, wave))


def _hidden(segment: Segment, keys: Tensor, wave: Wave) -> Tensor:
    """[n, 1, query_tile, width]: 0 where the query sees the key, HIDDEN where it does not."""
    part = slice(segment.first, segment.last)
    beyond = keys - wave.limits[part]  # whole numbers: the first that is not seen is 1 too far
    if wave.reach is not None:
        beyond.abs_().sub_(wave.reach[part])
    return beyond.clamp_(0, 1).mul_(HIDDEN)


def _spread(hidden: Tensor, rows: int, room: Tensor) -> Tensor:
    """[n, 1, rows, width]: a mask for the query heads of a KV head, which all see the same."""
    items, _, tile, width = hidden.shape
    if tile == 1:
        return hidden.expand(-1, -1, rows, -1)
    mask = room[: items * rows * width].view(items, rows // tile, tile, width)
    return mask.copy_(hidden).view(items, 1, rows, width)
