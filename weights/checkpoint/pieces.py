"""Which rows of a checkpoint's tensor are which rows of a parameter. No torch.

Families fuse query, key and value in one of two ways, here of two key-value heads with two query
heads each:

    one after the other    q0 q1 q2 q3  k0 k1  v0 v1
    by key-value head      q0 q1 k0 v0  q2 q3 k1 v1

With one key-value head both are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from weights.config.family import Source
from weights.inventory import Parameter


@dataclass(frozen=True, slots=True)
class Piece:
    """Output channels [start, start + size) of a tensor are ``parameter``'s from ``at`` on; of a
    tensor of one head, all are the row ``at``."""

    parameter: str
    start: int
    size: int
    at: int


def pieces(
    source: Source, targets: Sequence[Parameter], head: int | None = None
) -> tuple[Piece, ...]:
    """A tensor's output channels from first to last, as parts of its ``targets``; with a ``head``,
    that row of its one target.

    Raises ValueError where targets that are to be dealt out by head have no heads.
    """
    if head is not None:
        return (Piece(targets[0].name, 0, 1, head),)
    deals = min(target.heads for target in targets) if source.by_kv_head else 1
    if deals < 1:
        raise ValueError(f"{source.pattern} is dealt out by head, and its parameters have none")
    found: list[Piece] = []
    start = 0
    for deal in range(deals):
        for target in targets:
            size = target.shape[0] // deals
            found.append(Piece(target.name, start, size, deal * size))
            start += size
    return tuple(found)
