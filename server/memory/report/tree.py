"""The memory account for people and programs: GET /memory as a tree, and as a table.

Measured figures come from the accountant's latest reading, planned ones from the plan, so that the
two stand side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from server.host_budget import Use
from server.memory.accounting.reading import NOTHING, AllocatorReading, MemoryReading
from server.memory.backends.registry import backend_named
from server.memory.kinds import MemoryKind
from server.memory.planner.formulas import formulas
from server.memory.planner.plan import MemoryPlan
from server.units import format_size

Parts = list[dict[str, Any]]

_HEADER = ("kind", "now", "peak", "planned")
_SHOWN_AS = {(MemoryKind.RUNTIME, "code"): "loaded_code"}  # parts with another name here


@dataclass(frozen=True, slots=True)
class MemorySources:
    """Each returns at once. ``reading`` is None before the engine's first one; ``weights`` are
    measured bytes by component; ``host_bytes`` is the API process's resident set and ``api_budget``
    the reading of its HostBudget."""

    reading: Callable[[], MemoryReading | None]
    weights: Callable[[], Mapping[str, int]]
    requests_running: Callable[[], int]
    host_bytes: Callable[[], int]
    api_budget: Callable[[], Mapping[str, int]]


class MemoryReport:
    """The tree and the table of one server."""

    def __init__(self, plan: MemoryPlan, sources: MemorySources) -> None:
        self._plan = plan
        self._sources = sources
        backend = backend_named(plan.config.model.backend)
        self._device, self._accounting = backend.device, backend.parts.accounting
        self._held_format = backend.parts.held_format
        self._formulas = formulas(plan)

    def tree(self) -> dict[str, Any]:
        """``{"devices": [{"device", "total_bytes", "kinds"}], "host", "notes"}``; bytes are
        integers."""
        found = self._sources.reading()
        filled = {**self._formulas, **self._accounting.formulas(found)}
        is_ready, reading = found is not None, found or NOTHING
        return {
            "devices": [
                {
                    "device": self._device,
                    "ready": is_ready,
                    "total_bytes": reading.total,
                    "resident_bytes": reading.resident,
                    "kinds": {
                        str(kind): {
                            **self._kind(kind, filled[kind], reading),
                            "parts": self._parts(kind, reading) if is_ready else [],
                        }
                        for kind in MemoryKind
                    },
                    "kv": self._kv(reading),
                    "allocator": self._allocator(reading.allocator),
                }
            ],
            "host": {
                "api_process": {
                    "resident_bytes": self._sources.host_bytes(),
                    **{f"{n}_bytes": size for n, size in self._sources.api_budget().items()},
                },
                "engine_process": {"resident_bytes": reading.host.resident},
                "pinned_bytes": reading.host.pinned,
                "shared_bytes": reading.host.shared,
            },
            "notes": list(self._notes(found)),
        }

    def text(self) -> str:
        """The tree as a table for a terminal."""
        tree = self.tree()
        device, host = tree["devices"][0], tree["host"]
        engine, api = host["engine_process"], host["api_process"]
        in_engine = (
            f"{format_size(engine['resident_bytes'])} in the engine process and "
            if device["ready"]
            else ""
        )
        lines = (
            f"host: resident {in_engine}"
            f"{format_size(api['resident_bytes'])} in the API process, pinned "
            f"{format_size(host['pinned_bytes'])}, shared {format_size(host['shared_bytes'])}",
            f"API process, for its clients: {format_size(api['budget_bytes'])} planned, at most "
            f"{format_size(api['peak_bytes'])} so far; now "
            + ", ".join(f"{use} {format_size(api[f'{use}_bytes'])}" for use in Use),
            *tree["notes"],
        )
        return f"device {device['device']}\n{_table(_rows(device))}\n" + "\n".join(lines) + "\n"

    def _notes(self, reading: MemoryReading | None) -> Iterator[str]:
        """What a reader who compares with other tools should know."""
        if reading is not None:
            yield from self._accounting.notes(reading)
            return
        yield (
            "The engine gives no reading: it loads, or is being started again. Only what is "
            "planned is known."
        )

    def _kind(self, kind: MemoryKind, formula: str, reading: MemoryReading) -> dict[str, Any]:
        held = reading.kinds[kind]
        return {
            "bytes": held.now,
            "peak_bytes": held.peak,
            "planned_bytes": self._plan.kinds.get(kind),
            "formula": formula,
            "estimated": held.estimated,
        }

    def _allocator(self, allocator: AllocatorReading) -> dict[str, int]:
        states = {"reserved_bytes": allocator.reserved, "in_use_bytes": allocator.in_use}
        if self._accounting.own_allocator:
            states["largest_free_bytes"] = allocator.largest_free
        return states

    def _parts(self, kind: MemoryKind, reading: MemoryReading) -> Parts:
        if kind is MemoryKind.WEIGHTS:
            return self._weights()
        if kind in (MemoryKind.IO, MemoryKind.WORKSPACE):
            buffers = self._plan.layout.buffers
            parts = {b.name: b.nbytes for b in buffers if b.kind is kind}
            if self._accounting.own_allocator and kind is MemoryKind.WORKSPACE:
                parts |= reading.kinds[kind].parts
            return _named(parts)
        return _named(
            {
                _SHOWN_AS.get((kind, part), part): nbytes
                for part, nbytes in reading.kinds[kind].parts.items()
                if (kind, part) not in self._accounting.hidden_parts
            }
        )

    def _weights(self) -> Parts:
        planned, model = self._plan.layout.weights, self._plan.config.model
        return [
            {
                "part": component,
                "format": self._held_format(self._plan.layout.model, component, model),
                "bytes": nbytes,
                "planned_bytes": planned.get(component, 0),
            }
            for component, nbytes in sorted(self._sources.weights().items(), key=lambda i: -i[1])
        ]

    def _kv(self, reading: MemoryReading) -> dict[str, Any]:
        """The pool in the units that a request takes it in."""
        running = self._sources.requests_running()
        parts = reading.kinds[MemoryKind.KV_CACHE].parts
        live = parts["active"] + parts["tail_waste"]
        return {
            "block_size_tokens": self._plan.config.cache.block_size,
            "bytes_per_block": self._plan.kv.page_bytes,
            "bytes_per_token": self._plan.kv.groups[0].bytes_per_token,
            "capacity_tokens": self._plan.capacity_tokens,
            "requests_running": running,
            "mean_bytes_per_running_request": live // running if running else 0,
        }


def memory_table(reading: MemoryReading | None, planned: Mapping[str, int]) -> str:
    """One moment's account as a table: kinds with what they hold now, at most and by the plan.

    ``reading`` is the accountant's, ``planned`` bytes by kind. Of a reading that is not there yet
    the table says so. For a log: no formula, no component, a line break at its end.
    """
    if reading is None:
        return "memory: not read yet\n"
    rows = [_HEADER]
    for kind, held in reading.kinds.items():
        rows.append(_row(kind, held.now, held.peak, planned.get(kind)))
        if kind is MemoryKind.KV_CACHE:
            rows += [_row(f"  {part}", nbytes) for part, nbytes in held.parts.items()]
    return _table([*rows, _row("total", reading.total)])


def _row(
    name: str, now: int | None, peak: int | None = None, planned: int | None = None
) -> tuple[str, str, str, str]:
    return name, _size(now), _size(peak), _size(planned)


def _size(nbytes: int | None) -> str:
    return "" if nbytes is None else format_size(nbytes)


def _named(parts: Mapping[str, int]) -> Parts:
    return [{"part": name, "bytes": nbytes} for name, nbytes in parts.items()]


def _rows(device: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """A line for each kind, its parts below it, the total last."""
    rows, ready = [_HEADER], device["ready"]
    for kind, line in device["kinds"].items():
        now, peak = (line["bytes"], line["peak_bytes"]) if ready else (None, None)
        rows.append(_row(kind, now, peak, line["planned_bytes"]))
        for part in line["parts"]:
            planned = part.get("planned_bytes")
            rows.append(_row(f"  {part['part']}", part["bytes"], planned=planned))
    return [*rows, _row("total", device["total_bytes"])] if ready else rows


def _table(rows: list[tuple[str, str, str, str]]) -> str:
    """Columns padded to their widest cell; the first to the left, the others to the right."""
    first, *others = (max(len(row[column]) for row in rows) for column in range(4))
    lines = []
    for name, *cells in rows:
        padded = (f"{cell:>{width}}" for cell, width in zip(cells, others, strict=True))
        lines.append("  ".join((f"{name:<{first}}", *padded)).rstrip())
    return "\n".join(lines) + "\n"
