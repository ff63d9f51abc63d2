"""What is made of a reading stays as it was: /memory, the tables and the metrics, byte for byte.

recorded_readings.json was written when a reading was a flat dictionary that each reader took apart
by the prefixes and suffixes of its names. Of each device it holds such a dictionary, what came of
it, and what was shown while there was none. What the plan alone decides is left out.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from server.engine.gauges import EngineGauges
from server.host_budget import HostBudget
from server.ipc.engine_info import GAUGE_NAMES, gauge_values, memory_reading
from server.ipc.gauges import GaugeBlock
from server.memory.accounting.reading import NAMES, MemoryReading, flatten, unflatten
from server.memory.engine_args import EngineArgs
from server.memory.kinds import MemoryKind
from server.memory.planner.planner import plan_memory
from server.memory.report.startup import start_report
from server.memory.report.tree import MemoryReport, MemorySources, memory_table
from server.metrics.gauges import GaugeSources
from server.metrics.prometheus import PrometheusMetrics
from weights.synthetic.tiny_specs import tiny_llama

MIB, GIB = 2**20, 2**30
RECORD = json.loads((Path(__file__).parent / "recorded_readings.json").read_text())
PLANNED = {"weights": 5 * MIB + 1, "kv_cache": 7 * MIB, "activations": 3 * MIB, "graphs": MIB}
WEIGHTS = {"query": 5 * MIB, "norm": 7}
# Their formulas are the plan's, and the parts of some of them.
BY_PLAN = ("weights", "kv_cache", "activations", "io", "graphs", "workspace")
METRICS = ("quire_memory", "quire_kv_bytes", "quire_host", "quire_allocator")

SIZES = EngineArgs(
    device="cpu", dtype="bfloat16", block_size=64, max_num_seqs=8, max_num_batched_tokens=512
)


def memory(device: str, reading: MemoryReading | None) -> dict[str, Any]:
    """GET /memory, but for what the plan alone decides."""
    args = replace(SIZES, device={"cpu": "cpu", "gpu": "cuda"}[device])
    sources = MemorySources(
        reading=lambda: reading,
        weights=lambda: WEIGHTS,
        requests_running=lambda: 2,
        host_bytes=lambda: 11 * MIB,
        api_budget=HostBudget(1000).reading,
    )
    tree = MemoryReport(plan_memory(tiny_llama(), args, 4 * GIB), sources).tree()
    for kind, line in tree["devices"][0]["kinds"].items():
        del line["planned_bytes"]
        if kind in BY_PLAN:
            del line["formula"]
        if kind in ("weights", "io", "workspace"):
            line["parts"] = [part for part in line["parts"] if part["part"] == "libraries"]
    del tree["devices"][0]["kv"]
    return tree


def metrics(device: str, reading: MemoryReading | None) -> list[str]:
    exporter = PrometheusMetrics(
        GaugeSources(
            engine=lambda: {"blocks_total": 4},
            engine_up=lambda: True,
            memory=lambda: reading,
            planned=lambda: PLANNED,
            weights=lambda: [("norm", "bf16", 5)],
            host_bytes=lambda: 77,
            api_budget=HostBudget(1000).reading,
            device="cuda" if device == "gpu" else "cpu",
        )
    )
    return [line for line in exporter.render().decode().splitlines() if line.startswith(METRICS)]


@pytest.fixture(params=["cpu", "gpu"])
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["ready", "loading"])
def moment(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_memory_tables_and_metrics_are_as_recorded(device: str, moment: str) -> None:
    reading = unflatten(RECORD[device]["reading"]) if moment == "ready" else None
    expected = RECORD[device][moment]
    assert json.dumps(memory(device, reading)) == json.dumps(expected["memory"])
    assert memory_table(reading, PLANNED).splitlines() == expected["table"]
    name = "cuda" if device == "gpu" else "cpu"
    assert start_report(name, PLANNED, WEIGHTS, WEIGHTS, reading) == expected["start"]
    assert metrics(device, reading) == expected["metrics"]


def test_a_reading_has_the_names_of_the_record_and_comes_back_whole(device: str) -> None:
    flat = RECORD[device]["reading"]
    assert set(NAMES) == set(flat)
    assert flatten(unflatten(flat)) == flat


def test_a_reading_crosses_to_the_other_process_as_it_is(device: str) -> None:
    reading = unflatten(RECORD[device]["reading"])
    gauges = EngineGauges(**dict.fromkeys(EngineGauges.__dataclass_fields__, 3))
    with GaugeBlock.create(GAUGE_NAMES) as block:
        assert memory_reading(block.read()) is None
        block.write(gauge_values(gauges, reading))
        assert memory_reading(block.read()) == reading


def test_a_kinds_parts_can_be_changed_alone() -> None:
    reading = unflatten(RECORD["cpu"]["reading"])
    parts = {"active": 1, "cached": 2, "tail_waste": 3, "free": 4}
    changed = flatten(reading.with_parts(MemoryKind.KV_CACHE, parts))
    expected = {f"kv_cache.{part}": nbytes for part, nbytes in parts.items()}
    assert changed == {**flatten(reading), **expected}
