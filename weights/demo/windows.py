"""Cut a token sequence into overlapping windows so that each token is scored once.

A helper of `weights.demo.score` and `weights.demo.train`, not run by itself; it needs the
standard library alone.
"""

from __future__ import annotations

import lzma
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """A stretch of tokens, and the first one in it that no earlier window has scored."""

    ids: list[int]
    first_scored: int


def windows(ids: Sequence[int], length: int, stride: int) -> Iterator[Window]:
    """Yield the windows; all but the first begin with `length - stride` tokens of context."""
    if not 0 < stride <= length - 1:
        raise ValueError("the stride must be at least 1 and less than the window")
    # The very first token has nothing before it, so no model can be asked about it.
    scored = 1
    while scored < len(ids):
        end = min(len(ids), length if scored == 1 else scored + stride)
        start = max(0, end - length)
        yield Window(list(ids[start:end]), scored - start)
        scored = end


def bits_per_byte(nats: float, size: int) -> float:
    """Turn a sum of negative log-likelihoods over `size` bytes into bits per byte."""
    return nats / math.log(2) / size


def xz_bits_per_byte(files: Sequence[bytes]) -> float:
    """Bits per byte of `xz -9` on the files, one after the other."""
    joined = b"".join(files)
    return 8 * len(lzma.compress(joined, preset=9)) / len(joined)
