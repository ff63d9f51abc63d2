"""Scratch of sampling and of log-probabilities on a GPU, in integers: what a memory plan counts.

No torch. A call allocates one buffer of exactly these bytes (and its results) and frees it when it
returns; under a captured graph it lies in the graph's pool.
"""

from __future__ import annotations

from dataclasses import dataclass

from kernels.footprint import ceil_div, round_up

TILE = 4096  # tokens of a row that one program of the pass over the logits holds
GROUP = 64  # tokens whose best is kept, to bound what top_k and top_p can keep
CAPACITY = 4096  # tokens of a row that may survive that bound and still be searched apart
MAX_VOCAB = 1 << 20  # a row's mass is added in 63 bits, a token's taking up to 43 of them
MERGE_TOP = 32  # most likeliest tokens that log-probabilities take from every tile at once
ALIGNMENT = 256


@dataclass(frozen=True, slots=True)
class SamplingScratch:
    """The regions of a call's buffer.

    Args:
        rows, vocab: the logits' shape.
        changes: whether a penalty, bias, forbidden token or bitmask is given.
        entries: biases and forbidden tokens, together.
        truncates: whether top_k, top_p or min_p is given.
    Raises ValueError where the vocabulary is too large.
    """

    rows: int
    vocab: int
    changes: bool = False
    entries: int = 0
    truncates: bool = False
    tile: int = TILE
    group: int = GROUP
    capacity: int = CAPACITY

    def __post_init__(self) -> None:
        if not 1 <= self.vocab <= MAX_VOCAB:
            raise ValueError(
                f"logits has {self.vocab} columns; a GPU samples from 1 .. {MAX_VOCAB}"
            )

    @property
    def tiles(self) -> int:
        return ceil_div(self.vocab, self.tile)

    def regions(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape, in elements of 4 bytes, or of 8 for ``totals``; in this order."""
        tiles = (self.rows, self.tiles)
        regions: dict[str, tuple[int, ...]] = {
            "tile_best": tiles,
            "tile_id": tiles,
            "tile_score": tiles,
            "row_best": (self.rows,),
        }
        if self.changes:
            regions |= {"heads": tiles, "links": (self.entries,)}
            regions["processed"] = (self.rows, self.vocab)
        if self.truncates:
            regions |= {
                "tile_mass": tiles,
                "group_best": (self.rows, self.tiles * (self.tile // self.group)),
                "limits": (self.rows,),
                "survivor_counts": (self.rows,),
                "survivor_keys": (self.rows, self.capacity),
                "survivor_ids": (self.rows, self.capacity),
                "totals": (self.rows,),
            }
        return regions

    def offsets(self) -> tuple[dict[str, int], int]:
        """Name -> first byte, and the bytes of the whole."""
        offsets, end = {}, 0
        for name, shape in self.regions().items():
            offsets[name] = end
            size = 8 if name == "totals" else 4
            for extent in shape:
                size *= extent
            end += round_up(size, ALIGNMENT)
        return offsets, end


def sampling_workspace_bytes(
    rows: int, vocab: int, *, changes: bool = True, entries: int = 0, truncates: bool = True
) -> int:
    """Exact bytes of the scratch of ``sample`` on logits [rows, vocab]; see SamplingScratch.

    The defaults are the most that a call without sparse lists takes: a processed copy of the
    logits, which only a penalty, bias, forbidden token or bitmask asks for, is most of it.
    """
    return SamplingScratch(rows, vocab, changes, entries, truncates).offsets()[1]


def logprob_workspace_bytes(rows: int, vocab: int, num_top: int) -> int:
    """Exact bytes of the scratch of ``token_logprobs``: per tile, the highest logit, the sum of
    exponentials, and the tile's likeliest (value and id)."""
    tiles = ceil_div(vocab, TILE)
    merged = num_top if num_top <= MERGE_TOP else 0
    sizes = (4 * rows * tiles, 4 * rows * tiles, *(2 * (4 * rows * tiles * merged,)))
    return sum(round_up(size, ALIGNMENT) for size in sizes)
