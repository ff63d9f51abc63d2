"""The table of one moment, as it goes into a log."""

from __future__ import annotations

from server.memory.accounting.reading import KV_PARTS, unflatten
from server.memory.kinds import MemoryKind
from server.memory.report.tree import memory_table

MIB = 2**20


def test_every_kind_has_a_line_with_now_peak_and_plan() -> None:
    reading = {
        "total": 100 * MIB,
        "weights": 40 * MIB,
        "weights.peak": 41 * MIB,
        "kv_cache": 8 * MIB,
        "kv_cache.active": 5 * MIB,
        "unaccounted": -3 * MIB,
    }
    lines = memory_table(unflatten(reading), {"weights": 39 * MIB}).splitlines()
    names = [line.split()[0] for line in lines]
    assert set(MemoryKind) <= set(names)
    assert lines[1].split() == ["weights", "40.00", "MiB", "41.00", "MiB", "39.00", "MiB"]
    assert lines[3].split() == ["active", "5.00", "MiB"]
    assert names[3 : 3 + len(KV_PARTS)] == list(KV_PARTS)
    assert next(line for line in lines if "unaccounted" in line).split()[1:3] == ["-3.00", "MiB"]
    assert lines[-1].split() == ["total", "100.00", "MiB"]


def test_before_the_first_reading_it_says_so() -> None:
    assert memory_table(None, {"weights": 1}) == "memory: not read yet\n"
