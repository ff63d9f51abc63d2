"""Planned against measured at the start: each kind, and each component of the weights.

memory (cpu)           planned    measured    error
weights              20.89 MiB   20.89 MiB   +0.0 %
  embedding 4.00 MiB +0.0 %, query 1.50 MiB +0.0 %, ...
allocator_slack                  15.84 MiB
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

from server.memory.accounting.reading import NOTHING, MemoryReading
from server.memory.kinds import MemoryKind
from server.units import format_size

_WIDTH = 96
_SHOWN = (
    *(MemoryKind.WEIGHTS, MemoryKind.KV_CACHE, MemoryKind.ACTIVATIONS, MemoryKind.IO),
    *(MemoryKind.WORKSPACE, MemoryKind.GRAPHS, MemoryKind.ALLOCATOR_SLACK, MemoryKind.RUNTIME),
    MemoryKind.UNACCOUNTED,
)


def start_report(
    device: str,
    planned: Mapping[str, int],
    planned_weights: Mapping[str, int],
    weights: Mapping[str, int],
    reading: MemoryReading | None,
) -> list[str]:
    """Lines. ``planned`` are bytes by kind; the weights' are by component. Of activations it is
    the peak that was planned. Without a reading everything measured is 0."""
    now = reading or NOTHING
    lines = [_line(f"memory ({device})", "planned", "measured", "error")]
    for kind in _SHOWN:
        plan = planned.get(kind)
        if kind is MemoryKind.GRAPHS and not plan:
            continue
        is_peak = kind is MemoryKind.ACTIVATIONS
        held = now.kinds[kind]
        measured = held.peak if is_peak else held.now
        note = " (peak)" if is_peak else ""
        note += " (estimated)" if held.estimated else ""
        shown = "" if plan is None else format_size(plan)
        lines.append(_line(kind, shown, format_size(measured), error(plan, measured)) + note)
        if kind is MemoryKind.WEIGHTS:
            lines += _components(planned_weights, weights)
    lines.append(_line("resident set", "", format_size(now.resident), ""))
    return [*lines, _left(now.total, now.kinds[MemoryKind.FREE].now)]


def _left(total: int, free: int) -> str:
    """A resident set can be larger than its container: pages of libraries that another container
    read first are charged to that one."""
    if free >= 0:
        return _line(f"free of {format_size(total)}", "", format_size(free), "")
    over = f"{format_size(-free)} more than the limit of {format_size(total)} is resident: pages "
    return f"{over}of libraries that are charged to another container"


def error(planned: int | None, measured: int) -> str:
    """By how much what is measured exceeds the plan: +0.0 %. Empty where nothing was planned."""
    if planned is None:
        return ""
    if planned == 0:
        return "" if measured == 0 else f"+{format_size(measured)}"
    return f"{100 * (measured / planned - 1):+.1f} %"


def _components(planned: Mapping[str, int], measured: Mapping[str, int]) -> list[str]:
    """A few lines; what was planned and is not there stands with 0 B."""
    names = sorted({*planned, *measured}, key=lambda name: -measured.get(name, 0))
    parts = (_component(name, planned.get(name, 0), measured.get(name, 0)) for name in names)
    shown = ", ".join(parts)
    unbroken = shown.replace(" ", "\N{NO-BREAK SPACE}").replace(",\N{NO-BREAK SPACE}", ", ")
    wrapped = textwrap.wrap(unbroken, _WIDTH, initial_indent="  ", subsequent_indent="  ")
    return [line.replace("\N{NO-BREAK SPACE}", " ") for line in wrapped]


def _component(name: str, planned: int, measured: int) -> str:
    return f"{name} {format_size(measured)} {error(planned, measured)}".rstrip()


def _line(name: str, planned: str, measured: str, error: str) -> str:
    return f"{name:<18}{planned:>12}{measured:>12}{error:>10}".rstrip()
