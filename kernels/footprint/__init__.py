"""What operations take, in bytes. No torch."""

from __future__ import annotations


def ceil_div(dividend: int, divisor: int) -> int:
    """The quotient, rounded up."""
    return -(-dividend // divisor)


def round_up(size: int, multiple: int) -> int:
    """The next multiple."""
    return ceil_div(size, multiple) * multiple
