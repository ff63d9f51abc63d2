"""The books for people and programs: GET /memory as a tree, and as a table.

Measured figures come from the accountant's latest reading, planned ones from the plan, so that the
two stand side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from server.memory.accountant import KV_PARTS
from server.memory.layout import MemoryKind
from server.memory.planner import MemoryPlan, formulas
from server.option_values import format_size
from weights.inventory import held_format

Parts = list[dict[str, Any]]

_HEADER = ("kind", "now", "peak", "planned")
_LOGGED_PARTS = {MemoryKind.KV_CACHE: KV_PARTS}


@dataclass(frozen=True, slots=True)
class MemorySources:
    """Each returns at once. ``reading`` is empty before the engine's first one; ``weights`` are
    measured bytes by component."""

    reading: Callable[[], Mapping[str, int]]
    weights: Callable[[], Mapping[str, int]]
    requests_running: Callable[[], int]
    host_bytes: Callable[[], int]


class MemoryReport:
    """The tree and the table of one server."""

    def __init__(self, plan: MemoryPlan, sources: MemorySources, device: str = "cpu") -> None:
        self._plan = plan
        self._sources = sources
        self._device = device
        self._formulas = formulas(plan)

    def tree(self) -> dict[str, Any]:
        """``{"devices": [{"device", "total_bytes", "kinds"}], "host"}``; bytes are integers."""
        reading = self._sources.reading()
        return {
            "devices": [
                {
                    "device": self._device,
                    "ready": bool(reading),
                    "total_bytes": reading.get("total", 0),
                    "resident_bytes": reading.get("resident", 0),
                    "kinds": {str(kind): self._kind(kind, reading) for kind in MemoryKind},
                    "kv": self._kv(reading),
                }
            ],
            "host": {
                "api_process": {"resident_bytes": self._sources.host_bytes()},
                "engine_process": {"resident_bytes": reading.get("resident", 0)},
                "pinned_bytes": 0,
            },
        }

    def text(self) -> str:
        """The tree as a table for a terminal."""
        tree = self.tree()
        device, host = tree["devices"][0], tree["host"]
        engine, api = host["engine_process"], host["api_process"]
        return (
            f"device {self._device}\n"
            + _table(_rows(device))
            + f"\nresident: engine process {format_size(engine['resident_bytes'])}, "
            + f"API process {format_size(api['resident_bytes'])} (it lies in other_processes)\n"
        )

    def _kind(self, kind: MemoryKind, reading: Mapping[str, int]) -> dict[str, Any]:
        return {
            "bytes": reading.get(kind, 0),
            "peak_bytes": reading.get(f"{kind}.peak", 0),
            "planned_bytes": self._plan.kinds.get(kind),
            "formula": self._formulas[kind],
            "parts": self._parts(kind, reading),
        }

    def _parts(self, kind: MemoryKind, reading: Mapping[str, int]) -> Parts:
        match kind:
            case MemoryKind.WEIGHTS:
                return self._weights()
            case MemoryKind.KV_CACHE:
                return _named({name: reading.get(f"kv_cache.{name}", 0) for name in KV_PARTS})
            case MemoryKind.RUNTIME:
                names = {"loaded_code": "runtime.code", "base": "runtime.base"}
                return _named({part: reading.get(name, 0) for part, name in names.items()})
            case MemoryKind.IO | MemoryKind.WORKSPACE:
                buffers = self._plan.layout.buffers
                return _named({b.name: b.nbytes for b in buffers if b.kind is kind})
        return []

    def _weights(self) -> Parts:
        planned, runner = self._plan.layout.weights, self._plan.runner
        return [
            {
                "part": component,
                "format": held_format(component, runner.format, runner.quantization),
                "bytes": nbytes,
                "planned_bytes": planned.get(component, 0),
            }
            for component, nbytes in sorted(self._sources.weights().items(), key=lambda i: -i[1])
        ]

    def _kv(self, reading: Mapping[str, int]) -> dict[str, Any]:
        """The pool in the units that a request takes it in."""
        running = self._sources.requests_running()
        live = reading.get("kv_cache.active", 0) + reading.get("kv_cache.tail_waste", 0)
        return {
            "block_size_tokens": self._plan.runner.block_size,
            "bytes_per_block": self._plan.kv.page_bytes,
            "bytes_per_token": self._plan.kv.groups[0].bytes_per_token,
            "capacity_tokens": self._plan.capacity_tokens,
            "requests_running": running,
            "mean_bytes_per_running_request": live // running if running else 0,
        }


def memory_table(reading: Mapping[str, int], planned: Mapping[str, int]) -> str:
    """One moment's books as a table: kinds with what they hold now, at most and by the plan.

    ``reading`` is the accountant's, ``planned`` bytes by kind. Of a reading that is not there yet
    the table says so. For a log: no formula, no component, a line break at its end.
    """
    if not reading:
        return "memory: not read yet\n"
    rows = [_HEADER]
    for kind in MemoryKind:
        plan = planned.get(kind)
        rows.append(_row(kind, reading.get(kind, 0), reading.get(f"{kind}.peak", 0), plan))
        parts = {part: reading.get(f"{kind}.{part}", 0) for part in _LOGGED_PARTS.get(kind, ())}
        rows += [_row(f"  {part}", nbytes) for part, nbytes in parts.items()]
    return _table([*rows, _row("total", reading.get("total", 0))])


def _row(
    name: str, now: int, peak: int | None = None, planned: int | None = None
) -> tuple[str, str, str, str]:
    return name, _size(now), _size(peak), _size(planned)


def _size(nbytes: int | None) -> str:
    return "" if nbytes is None else format_size(nbytes)


def _named(parts: Mapping[str, int]) -> Parts:
    return [{"part": name, "bytes": nbytes} for name, nbytes in parts.items()]


def _rows(device: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """A line for each kind, its parts below it, the total last."""
    rows = [_HEADER]
    for kind, line in device["kinds"].items():
        rows.append(_row(kind, line["bytes"], line["peak_bytes"], line["planned_bytes"]))
        for part in line["parts"]:
            planned = part.get("planned_bytes")
            rows.append(_row(f"  {part['part']}", part["bytes"], planned=planned))
    return [*rows, _row("total", device["total_bytes"])]


def _table(rows: list[tuple[str, str, str, str]]) -> str:
    """Columns padded to their widest cell; the first to the left, the others to the right."""
    first, *others = (max(len(row[column]) for row in rows) for column in range(4))
    lines = []
    for name, *cells in rows:
        padded = (f"{cell:>{width}}" for cell, width in zip(cells, others, strict=True))
        lines.append("  ".join((f"{name:<{first}}", *padded)).rstrip())
    return "\n".join(lines) + "\n"
