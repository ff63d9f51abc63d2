"""Scratch of paged attention on a GPU, in integers: what a memory plan counts. No torch, no Triton.

Decode attention is cut evenly over a fixed number of programs, whatever the batch, so that its
scratch depends on the programs and hardly on the rows: a program leaves at most two unfinished
(row, KV head) pairs behind, one at each end of its share.
"""

from __future__ import annotations

from dataclasses import dataclass

from kernels.footprint import round_up
from kernels.footprint.attention import AttentionShape

MAX_PROGRAMS = 640  # four for each multiprocessor of the largest GPUs there are
START_WORDS = 4  # of a program: rank of its row, KV head, tile, tiles to do
RECORD_WORDS = 4  # of a row: its place in the batch, its token, its context, its first tile
HEADER_WORDS = 4  # of a list: tiles for each program, then nothing
ALIGNMENT = 128  # bytes; every region starts on a line of the L2 cache


@dataclass(frozen=True, slots=True)
class DecodeRegions:
    """Byte sizes, in the order in which the regions lie."""

    lists: int  # a work list for each window that layers have, int32
    counters: int  # int32, one for each program
    partials: int  # float32, two for each program: weighted values of a group of heads
    maxima: int  # float32, the same: each head's highest score
    sums: int  # float32, the same: each head's sum of weights

    @property
    def sizes(self) -> list[int]:
        return [getattr(self, name) for name in self.__slots__]

    @property
    def total(self) -> int:
        return sum(self.sizes)


def list_words(max_num_seqs: int) -> int:
    """int32 words of one work list: a header, every program's start, every row's record."""
    words = HEADER_WORDS + START_WORDS * MAX_PROGRAMS + RECORD_WORDS * max_num_seqs
    return _aligned(4 * words) // 4


def decode_regions(*, group: int, head_dim: int, max_num_seqs: int, windows: int) -> DecodeRegions:
    """``group`` is the number of query heads that share a KV head, ``windows`` that of different
    windows among the layers."""
    slots = 2 * MAX_PROGRAMS * group
    return DecodeRegions(
        lists=windows * 4 * list_words(max_num_seqs),
        counters=_aligned(4 * MAX_PROGRAMS),
        partials=_aligned(4 * slots * head_dim),
        maxima=_aligned(4 * slots),
        sums=_aligned(4 * slots),
    )


def gpu_attention_regions(shape: AttentionShape) -> dict[str, int]:
    """What an AttentionWorkspace holds on a GPU, in bytes.

    Nothing in batch-invariant mode: no row is cut there, so that nothing is left to join.
    """
    if shape.batch_invariant:
        return {}
    regions = decode_regions(
        group=shape.group,
        head_dim=shape.head_dim,
        max_num_seqs=shape.max_num_seqs,
        windows=len(shape.windows),
    )
    return dict(zip(regions.__slots__, regions.sizes, strict=True))


def _aligned(size: int) -> int:
    return round_up(size, ALIGNMENT)
