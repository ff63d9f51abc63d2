"""Writing the tuning table: measured rows before general ones, one row a line."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kernels.tuning import Row

Content = dict[str, Any]


def entry_of(row: Row) -> dict[str, Any]:
    """A row as the table's JSON has it; what is empty is left out."""
    entry: dict[str, Any] = {"kernel": row.kernel}
    if row.archs:
        entry["archs"] = list(row.archs)
    if row.when:
        entry["when"] = dict(row.when)
    if row.tuning.blocks:
        entry["blocks"] = dict(row.tuning.blocks)
    return entry | {"num_warps": row.tuning.num_warps, "num_stages": row.tuning.num_stages}


def merged(content: Content, measured: Sequence[Row], environment: Mapping[str, Any]) -> Content:
    """``content`` with the measured rows in it; the rows that they do not replace stay.

    A measured row names one architecture. It goes before all of its kernel's other rows, for the
    first row that applies wins; it replaces a row of the same kernel, architecture and conditions.
    """
    replaced = [(row.kernel, list(row.archs), dict(row.when)) for row in measured]
    kept = [
        entry
        for entry in content["rows"]
        if (entry["kernel"], entry.get("archs", []), entry.get("when", {})) not in replaced
    ]
    rows: list[dict[str, Any]] = []
    pending: dict[str, list[dict[str, Any]]] = {}
    for row in measured:
        pending.setdefault(row.kernel, []).append(entry_of(row))
    for entry in kept:
        rows += pending.pop(entry["kernel"], [])
        rows.append(entry)
    for entries in pending.values():
        rows += entries
    known = [
        known for known in content.get("environments", []) if known["arch"] != environment["arch"]
    ]
    return {"environments": [*known, dict(environment)], "rows": rows}


def write_table(path: Path, content: Content) -> None:
    """One row a line, so that a change reads as a change of that line."""
    parts = [
        f'"{name}": [\n{_lines(content[name])}\n]'
        for name in ("environments", "rows")
        if content.get(name)
    ]
    path.write_text("{" + ", ".join(parts) + "}\n")


def _lines(entries: Sequence[Mapping[str, Any]]) -> str:
    return ",\n".join(f"  {json.dumps(entry)}" for entry in entries)
