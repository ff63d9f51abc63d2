"""How the kinds that no plan can know come about, by device, with a reading's numbers put in.

The kinds that are planned have their formulas beside the plan (server.memory.plan_formulas).
"""

from __future__ import annotations

from collections.abc import Mapping

from server.memory.layout import MemoryKind

Reading = Mapping[str, int]


def measured_formulas(on_gpu: bool, reading: Reading) -> dict[str, str]:
    """By kind. Without a reading the sentences stand without numbers."""
    return _on_gpu(reading) if on_gpu else _on_cpu(reading)


def _on_cpu(reading: Reading) -> dict[str, str]:
    def n(name: str) -> str:
        return _number(name, reading)

    return {
        MemoryKind.ALLOCATOR_SLACK: f"resident pages of malloc's arena{n('allocator.reserved')} - "
        f"bytes in use in it{n('allocator.in_use')} (mallinfo2)",
        MemoryKind.RUNTIME: f"resident pages of loaded code, now{n('runtime.code')} + what the "
        f"process had written before it loaded the model{n('runtime.base')}",
        MemoryKind.OTHER_PROCESSES: f"total{n('total')} - MemAvailable, or what the cgroup's limit "
        f"leaves{n('available')} - what the engine process has written{n('resident.anonymous')}",
        MemoryKind.UNACCOUNTED: f"resident set{n('resident')} - all other kinds that lie in it"
        + _listed(reading),
        MemoryKind.FREE: f"total{n('total')} - resident set of the engine process{n('resident')} "
        f"- other_processes{n('other_processes')}",
    }


def _on_gpu(reading: Reading) -> dict[str, str]:
    def n(name: str) -> str:
        return _number(name, reading)

    return {
        MemoryKind.ALLOCATOR_SLACK: "torch's allocator, outside the pools of graphs: free"
        f"{n('allocator_slack.free')} (in one piece at most{n('allocator.largest_free')}) + freed "
        f"and waiting for a stream{n('allocator_slack.pending')} + sizes rounded up"
        f"{n('allocator_slack.rounding')}",
        MemoryKind.RUNTIME: _runtime(reading),
        MemoryKind.OTHER_PROCESSES: _others(reading),
        MemoryKind.UNACCOUNTED: f"total{n('total')} - all other kinds: tensors in no list"
        f"{n('unaccounted.tensors')} + taken behind the allocator's back{n('unaccounted.outside')}",
        MemoryKind.FREE: "what the driver calls free (NVML)",
    }


def _runtime(reading: Reading) -> str:
    base = _number("runtime.base", reading)
    if reading.get("estimated.runtime"):
        return (
            f"estimated: free memory before the context was made - after - what the allocator had "
            f"reserved by then{base}, each reading repeated until it was steady"
        )
    return (
        "NVML's figure for this process - what the allocator reserves: with the context and the "
        f"libraries' handles{base} + kernels and graphs loaded until the engine was ready"
        f"{_number('runtime.code', reading)}"
    )


def _others(reading: Reading) -> str:
    def n(name: str) -> str:
        return _number(name, reading)

    if reading.get("estimated.other_processes"):
        return (
            f"estimated: total{n('total')} - free{n('free')} - reserved by the allocator"
            f"{n('allocator.reserved')} - runtime{n('runtime')}, because the driver does not list "
            "this process; what it takes behind the allocator's back would be in here"
        )
    return (
        f"NVML's figures for other processes + what the driver keeps{n('other_processes.driver')}"
    )


def _listed(reading: Reading) -> str:
    if not reading:
        return ""
    return f" {reading.get('resident', 0) - reading.get('unaccounted', 0)}"


def _number(name: str, reading: Reading) -> str:
    return f" {reading[name]}" if name in reading else ""
