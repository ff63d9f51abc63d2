"""How the kinds that no plan can know come about, by device, with a reading's numbers put in; and
what a reader who compares them with other tools should know.

The kinds that are planned have their formulas beside the plan (server.memory.planner.formulas).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from server.memory.accounting.reading import NOTHING, MemoryReading
from server.memory.kinds import MemoryKind
from server.units import format_size

Reading = MemoryReading | None


def cpu_formulas(reading: Reading) -> dict[str, str]:
    """By kind. Without a reading the sentences stand without numbers."""
    now, n = _numbers(reading)
    runtime = now.kinds[MemoryKind.RUNTIME].parts
    others = now.kinds[MemoryKind.OTHER_PROCESSES].now
    listed = now.resident - now.kinds[MemoryKind.UNACCOUNTED].now
    return {
        MemoryKind.ALLOCATOR_SLACK: "resident pages of malloc's arena"
        f"{n(now.allocator.reserved)} - bytes in use in it{n(now.allocator.in_use)} (mallinfo2)",
        MemoryKind.RUNTIME: f"resident pages of loaded code, now{n(runtime['code'])} + what the "
        f"process had written before it loaded the model{n(runtime['base'])}",
        MemoryKind.OTHER_PROCESSES: f"total{n(now.total)} - MemAvailable, or what the cgroup's "
        f"limit leaves{n(now.available)} - what the engine process has written{n(now.anonymous)}",
        MemoryKind.UNACCOUNTED: f"resident set{n(now.resident)} - all other kinds that lie in it"
        f"{n(listed)}",
        MemoryKind.FREE: f"total{n(now.total)} - resident set of the engine process"
        f"{n(now.resident)} - other_processes{n(others)}",
    }


def gpu_formulas(reading: Reading) -> dict[str, str]:
    """As cpu_formulas."""
    now, n = _numbers(reading)
    slack = now.kinds[MemoryKind.ALLOCATOR_SLACK].parts
    unaccounted = now.kinds[MemoryKind.UNACCOUNTED].parts
    return {
        MemoryKind.ALLOCATOR_SLACK: "torch's allocator, outside the pools of graphs: free"
        f"{n(slack['free'])} (in one piece at most{n(now.allocator.largest_free)}) + freed "
        f"and waiting for a stream{n(slack['pending'])} + sizes rounded up{n(slack['rounding'])}",
        MemoryKind.RUNTIME: _runtime(reading),
        MemoryKind.OTHER_PROCESSES: _others(reading),
        MemoryKind.UNACCOUNTED: f"total{n(now.total)} - all other kinds: tensors in no list"
        f"{n(unaccounted['tensors'])} + taken behind the allocator's back"
        f"{n(unaccounted['outside'])}",
        MemoryKind.FREE: "what the driver calls free (NVML)",
    }


def cpu_notes(reading: MemoryReading) -> Iterator[str]:
    yield "top and ps show the resident set: the whole KV pool is in it, in use or not."
    yield "What the API process has written lies in other_processes."
    code = format_size(reading.kinds[MemoryKind.RUNTIME].parts["code"])
    yield (
        f"free reads low, by {code} at most: so much of the resident set is loaded code, whose "
        "pages the kernel can take back, or charges to another container that read them first."
    )


def gpu_notes(reading: MemoryReading) -> Iterator[str]:
    yield (
        "nvidia-smi shows pools, not use: its figure for this process holds the whole KV pool and "
        "what the allocator keeps, and does not fall when a request ends."
    )
    if reading.kinds[MemoryKind.OTHER_PROCESSES].estimated:
        yield (
            "The driver does not list this process (as in a container with process ids of its "
            "own), so runtime is estimated and other_processes is a remainder."
        )


def _runtime(reading: Reading) -> str:
    now, n = _numbers(reading)
    runtime = now.kinds[MemoryKind.RUNTIME]
    base = n(runtime.parts["base"])
    if runtime.estimated:
        return (
            f"estimated: free memory before the context was made - after - what the allocator had "
            f"reserved by then{base}, each reading repeated until it was steady"
        )
    return (
        "NVML's figure for this process - what the allocator reserves: with the context and the "
        f"libraries' handles{base} + kernels and graphs loaded until the engine was ready"
        f"{n(runtime.parts['code'])}"
    )


def _others(reading: Reading) -> str:
    now, n = _numbers(reading)
    others = now.kinds[MemoryKind.OTHER_PROCESSES]
    if others.estimated:
        free, runtime = now.kinds[MemoryKind.FREE].now, now.kinds[MemoryKind.RUNTIME].now
        return (
            f"estimated: total{n(now.total)} - free{n(free)} - reserved by the allocator"
            f"{n(now.allocator.reserved)} - runtime{n(runtime)}, because the driver does not list "
            "this process; what it takes behind the allocator's back would be in here"
        )
    return f"NVML's figures for other processes + what the driver keeps{n(others.parts['driver'])}"


def _numbers(reading: Reading) -> tuple[MemoryReading, Callable[[int], str]]:
    """The reading, and how a sentence takes a number of it: after a blank, or not at all."""
    if reading is None:
        return NOTHING, lambda number: ""
    return reading, lambda number: f" {number}"
