"""How the native kernels of a CPU lay a matrix down, and what a product holds beside it. No torch.

The layout is that of kernels/cpu/csrc: tiles of TILE output channels, whose inputs are padded to an
even number, or in int8 to whole groups.
"""

from __future__ import annotations

TILE = 16  # output channels of a tile
GROUP = 64  # inputs whose weights share a scale in int8
ROW_GROUP = 32  # inputs of a row that share one
SCALE_BYTES = 2  # bfloat16

_ELEMENT = {"f32": 4, "bf16": 2, "f16": 2}


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def channel_bytes(inputs: int, format: str) -> int:
    """Bytes of one output channel of a packed matrix."""
    if format == "int8":
        return _up(inputs, GROUP) + _up(inputs, GROUP) // GROUP * SCALE_BYTES
    return _up(inputs, 2) * _ELEMENT[format]


def packed_bytes(channels: int, inputs: int, format: str) -> int:
    """Exact bytes of a packed matrix [channels, inputs]."""
    return _up(channels, TILE) * channel_bytes(inputs, format)


def product_scratch_bytes(rows: int, inputs: int, format: str, threads: int) -> int:
    """Bytes that a product of up to ``rows`` rows works in: the rows as it reads them, and each
    thread's sums of a tile."""
    sums = 4 * threads * rows * TILE
    if format == "int8":
        padded = _up(inputs, GROUP)
        return rows * (2 * padded + padded // ROW_GROUP * 4) + sums
    return 4 * rows * _up(inputs, 2) + sums
