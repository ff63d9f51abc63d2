"""min_p, top_k and top_p on a CPU: what a row does not keep becomes minus infinity.

What top_k and top_p keep is always "the best n tokens by (value falling, id rising)", so a row
comes down to a count n, read off its largest values. These are found by partial selection; only
rows where top_p reaches past the PARTIAL largest, or a top_k does, are sorted whole. Sums run in
sequence over a row's own values, in float64: nothing depends on the other rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

PARTIAL = 1024


def drop_below(scaled: Tensor, min_p: Tensor) -> None:
    """In place: tokens less likely than min_p [R] times the likeliest. The highest value is 0."""
    scaled.masked_fill_(scaled < min_p.log().unsqueeze(1), -torch.inf)


def keep_best(scaled: Tensor, top_k: Tensor, top_p: Tensor) -> None:
    """In place on [R, V]: the best top_k [R], and of these the fewest that have mass top_p [R].

    A top_k outside 1 .. V keeps all; a top_p of 1 or more keeps all. The highest value is 0.
    """
    vocab = scaled.shape[1]
    top_k = torch.where((top_k < 1) | (top_k > vocab), vocab, top_k.long())
    partial = min(PARTIAL, vocab)
    narrow = top_k <= partial
    whole = ~narrow & (top_k < vocab)
    _keep_narrow(scaled, _ids(narrow), top_k, top_p)
    unreached = _keep_nucleus(scaled, _ids(~narrow & ~whole), top_p, partial)
    _keep_whole(scaled, torch.cat((_ids(whole), unreached)), top_k, top_p)


def _ids(mask: Tensor) -> Tensor:
    return mask.nonzero().view(-1)


def _keep_narrow(scaled: Tensor, rows: Tensor, top_k: Tensor, top_p: Tensor) -> None:
    """Rows whose top_k bounds how many of the largest values are needed."""
    if rows.shape[0]:
        part, limits = scaled.index_select(0, rows), top_k[rows]
        values = part.topk(int(limits.max()), dim=1).values
        _cut(part, values, _counts(values, limits, top_p[rows]))
        scaled.index_copy_(0, rows, part)


def _keep_nucleus(scaled: Tensor, rows: Tensor, top_p: Tensor, partial: int) -> Tensor:
    """Rows with top_p alone, whose nucleus is nearly always small. Returns where it is not."""
    if not rows.shape[0]:
        return rows
    part = scaled.index_select(0, rows)
    mass = part.exp().cumsum(1, dtype=torch.float64)[:, -1:]
    values = part.topk(partial, dim=1).values
    reached = values.exp().cumsum(1, dtype=torch.float64)
    counts = (reached < mass * top_p[rows].double().unsqueeze(1)).sum(1) + 1
    done = _ids(counts <= partial)
    if done.shape[0]:
        part = part.index_select(0, done)
        _cut(part, values[done], counts[done])
        scaled.index_copy_(0, rows[done], part)
    return rows[_ids(counts > partial)]


def _keep_whole(scaled: Tensor, rows: Tensor, top_k: Tensor, top_p: Tensor) -> None:
    if rows.shape[0]:
        part = scaled.index_select(0, rows)
        values = part.sort(dim=1, descending=True).values
        _cut(part, values, _counts(values, top_k[rows], top_p[rows]))
        scaled.index_copy_(0, rows, part)


def _counts(values: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """How many of the falling ``values`` [R, n] a row keeps; n reaches every top_k."""
    outside = torch.arange(values.shape[1]) >= top_k.unsqueeze(1)
    reached = values.exp().masked_fill_(outside, 0).cumsum(1, dtype=torch.float64)
    needed = reached[:, -1:] * top_p.double().unsqueeze(1)
    counts = torch.minimum((reached < needed).sum(1) + 1, top_k)
    return torch.where(top_p < 1, counts, top_k)


def _cut(scaled: Tensor, values: Tensor, counts: Tensor) -> None:
    """In place: the best counts [R] of each row stay; of values equal to the last, the low ids."""
    thresholds = values.gather(1, (counts - 1).unsqueeze(1))
    equal = scaled == thresholds
    spare = equal.sum(1) - (counts - (scaled > thresholds).sum(1))
    tied = _ids(spare > 0)
    scaled.masked_fill_(scaled < thresholds, -torch.inf)
    if tied.shape[0]:
        among = equal.index_select(0, tied)
        rank = among.cumsum(1)
        allowed = (among.sum(1) - spare[tied]).unsqueeze(1)
        drop = among & (rank > allowed)
        scaled[tied] = scaled[tied].masked_fill_(drop, -torch.inf)
