"""Traces: recorded arrivals with their lengths, as CSV with a head line or as JSON lines.

time        seconds, rising; the first is second 0
input       prompt tokens
output      tokens to generate
group       optional: requests of a group share their prefix (a number or a name)
prefix      optional: how many of the prompt's tokens that are; without it the scenario says
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from loadtest.errors import ScenarioError

_WANTED = ("time", "input", "output")
_MAX_TOKENS = 1 << 22


@dataclass(frozen=True, slots=True)
class TraceRow:
    time: float
    input: int
    output: int
    group: str | None = None
    prefix: int | None = None


def read_trace(path: Path) -> tuple[TraceRow, ...]:
    """The rows of a .csv or .jsonl file. Raises ScenarioError that names the file and the line."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ScenarioError(f"{path}: {error}") from None
    lines = _csv(text, path) if path.suffix == ".csv" else _json_lines(text, path)
    rows = tuple(_row(values, f"{path}:{number}") for number, values in lines)
    if not rows:
        raise ScenarioError(f"{path}: the trace has no requests")
    for number, (earlier, later) in enumerate(pairwise(rows)):
        if later.time < earlier.time:
            raise ScenarioError(
                f"{path}: request {number + 2} is at {later.time:g} s, before the one above it"
            )
    return rows


def _csv(text: str, path: Path) -> Iterator[tuple[int, Mapping[str, object]]]:
    reader = csv.DictReader(text.splitlines())
    missing = [name for name in _WANTED if name not in (reader.fieldnames or ())]
    if missing:
        raise ScenarioError(f"{path}: the head line lacks {', '.join(missing)}")
    for values in reader:
        yield reader.line_num, values


def _json_lines(text: str, path: Path) -> Iterable[tuple[int, Mapping[str, object]]]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except ValueError:
            values = None
        if not isinstance(values, dict):
            raise ScenarioError(f"{path}:{number}: not a JSON object")
        yield number, values


def _row(values: Mapping[str, object], place: str) -> TraceRow:
    group, prefix = values.get("group"), values.get("prefix")
    tokens = int(_number(values, "input", place, 1, _MAX_TOKENS))
    return TraceRow(
        time=_number(values, "time", place, 0.0, 1e9),
        input=tokens,
        output=int(_number(values, "output", place, 1, _MAX_TOKENS)),
        group=None if group in (None, "") else str(group),
        prefix=None if prefix in (None, "") else int(_number(values, "prefix", place, 0, tokens)),
    )


def _number(values: Mapping[str, object], key: str, place: str, low: float, high: float) -> float:
    value = values.get(key)
    try:
        number = float(value) if isinstance(value, int | float | str) else float("nan")
    except ValueError:
        number = float("nan")
    if not low <= number <= high:
        raise ScenarioError(f"{place}: {key} is {value!r}; allowed is {low:g} to {high:g}")
    return number
