"""Whole numbers: rounded up, and sizes as people read them and as options take them."""

from __future__ import annotations

SIZE_UNITS = {"": 1, "B": 1, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def ceil_div(dividend: int, divisor: int) -> int:
    """The quotient, rounded up."""
    return -(-dividend // divisor)


def round_up(size: int, multiple: int) -> int:
    """The next multiple."""
    return ceil_div(size, multiple) * multiple


def format_size(size_bytes: float) -> str:
    """A size for people: 512 B, 1.50 MiB, 2.00 GiB. Negative sizes keep their sign."""
    magnitude = abs(size_bytes)
    if magnitude < 1024:
        return f"{size_bytes:.0f} B"
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        size_bytes /= 1024
        if abs(size_bytes) < 1024 or unit == "TiB":
            break
    return f"{size_bytes:.2f} {unit}"


def exact_size(size_bytes: int) -> str:
    """A size as an option takes it, to the byte: 16GiB, 2304KiB, 1000."""
    for unit in ("TIB", "GIB", "MIB", "KIB"):
        if size_bytes and size_bytes % SIZE_UNITS[unit] == 0:
            return f"{size_bytes // SIZE_UNITS[unit]}{unit.replace('I', 'i')}"
    return str(size_bytes)
