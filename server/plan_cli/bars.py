"""Rows of plain text: tables in columns, bars of shares."""

from __future__ import annotations

from collections.abc import Sequence

BAR_WIDTH = 24
_ROUNDED_UP = 999.5  # from here on three digits say 1000


def table(rows: Sequence[Sequence[str]], *, left: int = 1) -> list[str]:
    """Rows as lines, columns as wide as their widest cell; the first ``left`` flush left."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def bar(share: float, width: int = BAR_WIDTH) -> str:
    """A bar of up to ``width`` signs; what is there at all has one."""
    filled = min(width, max(0, round(share * width)))
    return "#" * (filled or (1 if share > 0 else 0))


def decimal(number: float) -> str:
    """A large number for people: 12.3 k, 4.56 M, 7.89 G, 1.23 T, 4,560 T."""
    for unit in ("", " k", " M", " G"):
        if abs(number) < _ROUNDED_UP:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g} T" if abs(number) < _ROUNDED_UP else f"{number:,.0f} T"


def duration(seconds: float | None) -> str:
    """A time for people: 12 us, 3.4 ms, 5.6 s; a dash where it is unknown."""
    if seconds is None:
        return "-"
    for factor, unit in ((1e6, "us"), (1e3, "ms")):
        if seconds * factor < _ROUNDED_UP:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds:.3g} s"
