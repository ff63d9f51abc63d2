"""Which batch sizes of decode steps are captured as CUDA graphs.

A captured step has a fixed number of rows; a batch takes the next size up and fills it with rows
that do nothing. Sizes lie close where a row more costs most of its share (each one reads the same
weights) and far apart where batches are large: a batch above 8 is at most half filling.
"""

from __future__ import annotations

SIZES = (
    *(1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256),
    *(320, 384, 448, 512),
)


def graph_sizes(max_rows: int) -> tuple[int, ...]:
    """The sizes to capture for batches of up to ``max_rows`` rows, rising: 20 at most.

    The last one is max_rows itself, but for servers of more rows than the largest size.
    """
    if max_rows < 1:
        return ()
    fitting = tuple(size for size in SIZES if size < max_rows)
    return fitting if max_rows > SIZES[-1] else (*fitting, max_rows)


def next_size(sizes: tuple[int, ...], rows: int) -> int | None:
    """The smallest of the rising ``sizes`` that holds ``rows``; None where none does."""
    return next((size for size in sizes if size >= rows), None)
