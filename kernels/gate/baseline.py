"""The figures that compiled kernels are held to, and how a difference reads."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

Row = dict[str, int | str]  # figures, and "source": a digest of what was compiled
Rows = dict[str, Row]  # by job


class Difference(NamedTuple):
    """One line of a review; "-" stands for nothing."""

    case: str
    figure: str
    was: str
    now: str


def read_baseline(path: Path, triton_version: str) -> Rows:
    """Raises ValueError for a baseline of another version of Triton."""
    if not path.exists():
        return {}
    content = json.loads(path.read_text())
    if content["triton"] != triton_version:
        raise ValueError(
            f"{path.name} was written with triton {content['triton']}; this is {triton_version}:"
            " compare nothing (--smoke), or renew all of it (--write)"
        )
    return dict(content["cases"])


def write_baseline(path: Path, triton_version: str, rows: Rows) -> None:
    """One line a case, so that a change reads as a change of that line."""
    lines = [f"  {json.dumps(job)}: {json.dumps(row)}" for job, row in sorted(rows.items())]
    body = ",\n".join(lines)
    path.write_text(f'{{"triton": {json.dumps(triton_version)}, "cases": {{\n{body}\n}}}}\n')


def differences(was: Rows, now: Rows) -> Iterator[Difference]:
    """All that is not equal, case by case."""
    for job in sorted(was.keys() | now.keys()):
        before, after = was.get(job), now.get(job)
        if before is None:
            yield Difference(job, "case", "-", "new")
        elif after is None:
            yield Difference(job, "case", "held", "gone")
        else:
            for figure in dict.fromkeys([*before, *after]):
                old, new = str(before.get(figure, "-")), str(after.get(figure, "-"))
                if old != new:
                    yield Difference(job, figure, old, new)


def review(found: Sequence[Difference]) -> str:
    """The differences as a table."""
    table = [("case", "figure", "was", "is"), *found]
    widths = [max(len(row[column]) for row in table) for column in range(4)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    )
