"""GET /memory as a tree and as a table: of a CPU's books and of a GPU's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from server.host_budget import HostBudget
from server.memory.accounting.reading import NAMES, unflatten
from server.memory.engine_args import EngineArgs
from server.memory.kinds import MemoryKind
from server.memory.planner.planner import plan_memory
from server.memory.report.tree import MemoryReport, MemorySources
from server.units import format_size
from weights.synthetic.tiny_specs import tiny_llama

MIB, GIB = 2**20, 2**30
PRIME = 1_000_003

SIZES = EngineArgs(
    device="cpu", dtype="bfloat16", block_size=64, max_num_seqs=8, max_num_batched_tokens=512
)


def reading(**changes: int) -> dict[str, int]:
    """A figure of its own for every name, but no estimate."""
    found = {name: PRIME * (index + 1) for index, name in enumerate(NAMES)}
    found |= {name: 0 for name in NAMES if name.startswith("estimated.")}
    return found | changes


def report(read: Mapping[str, int], *, backend: str = "cpu") -> MemoryReport:
    args = replace(SIZES, device=backend)
    sources = MemorySources(
        reading=lambda: unflatten(read) if read else None,
        weights=lambda: {"query": 5, "norm": 7},
        requests_running=lambda: 2,
        host_bytes=lambda: 11 * MIB,
        api_budget=HostBudget(1000).reading,
    )
    return MemoryReport(plan_memory(tiny_llama(), args, 4 * GIB), sources)


def test_every_kind_stands_with_bytes_peak_plan_and_formula() -> None:
    read = reading()
    tree = report(read).tree()
    (device,) = tree["devices"]
    assert list(device["kinds"]) == [str(kind) for kind in MemoryKind]
    for kind, line in device["kinds"].items():
        assert (line["bytes"], line["peak_bytes"]) == (read[kind], read[f"{kind}.peak"])
        assert line["formula"]
        assert line["estimated"] is False
    assert device["total_bytes"] == read["total"]
    assert device["kinds"]["weights"]["parts"][0]["part"] == "norm"


def test_host_lines_are_of_both_processes_with_pinned_and_shared() -> None:
    read = reading()
    assert report(read).tree()["host"] == {
        "api_process": {
            "resident_bytes": 11 * MIB,
            "budget_bytes": 1000,
            "peak_bytes": 0,
            "bodies_bytes": 0,
            "requests_bytes": 0,
            "events_bytes": 0,
            "work_bytes": 0,
        },
        "engine_process": {"resident_bytes": read["host.resident"]},
        "pinned_bytes": read["host.pinned"],
        "shared_bytes": read["host.shared"],
    }


def test_formulas_are_the_devices_own_with_the_numbers_put_in() -> None:
    read = reading()
    kinds = {
        backend: report(read, backend=backend).tree()["devices"][0]["kinds"]
        for backend in ("cpu", "cuda")
    }
    for kind in ("allocator_slack", "runtime", "other_processes", "unaccounted", "free"):
        assert kinds["cpu"][kind]["formula"] != kinds["cuda"][kind]["formula"], kind
    assert "malloc" in kinds["cpu"]["allocator_slack"]["formula"]
    cuda = {kind: line["formula"] for kind, line in kinds["cuda"].items()}
    assert not any("malloc" in text or "resident pages" in text for text in cuda.values())
    assert f"free {read['allocator_slack.free']}" in cuda["allocator_slack"]
    assert f"at most {read['allocator.largest_free']}" in cuda["allocator_slack"]
    assert f"keeps {read['other_processes.driver']}" in cuda["other_processes"]
    assert f"back {read['unaccounted.outside']}" in cuda["unaccounted"]
    assert "NVML" in cuda["runtime"] and str(read["runtime.code"]) in cuda["runtime"]
    assert str(read["allocator.in_use"]) in kinds["cpu"]["allocator_slack"]["formula"]


def test_an_estimate_is_marked_and_explained() -> None:
    read = reading(**{"estimated.runtime": 1, "estimated.other_processes": 1})
    tree = report(read, backend="cuda").tree()
    kinds = tree["devices"][0]["kinds"]
    marked = [kind for kind, line in kinds.items() if line["estimated"]]
    assert marked == ["runtime", "other_processes"]
    assert all(kinds[kind]["formula"].startswith("estimated: ") for kind in marked)
    assert any("does not list this process" in note for note in tree["notes"])


def test_a_gpus_parts_show_what_its_allocator_keeps() -> None:
    read = reading()
    (device,) = report(read, backend="cuda").tree()["devices"]
    parts = {
        kind: {part["part"]: part["bytes"] for part in line["parts"]}
        for kind, line in device["kinds"].items()
    }
    assert parts["allocator_slack"] == {
        name: read[f"allocator_slack.{name}"] for name in ("free", "pending", "rounding")
    }
    assert parts["workspace"]["libraries"] == read["workspace.libraries"]
    assert set(parts["unaccounted"]) == {"tensors", "outside"}
    assert device["device"] == "cuda"
    assert device["allocator"]["largest_free_bytes"] == read["allocator.largest_free"]
    (cpu,) = report(read).tree()["devices"]
    assert [part["part"] for part in cpu["kinds"]["allocator_slack"]["parts"]] == ["free"]
    assert cpu["kinds"]["unaccounted"]["parts"] == []


def test_the_table_says_what_other_tools_show() -> None:
    table = report(reading(), backend="cuda").text()
    assert table.startswith("device cuda\n")
    assert "nvidia-smi shows pools, not use" in table
    assert all(f"\n{kind} " in table for kind in MemoryKind)
    assert "top and ps show the resident set" in report(reading()).text()


def test_without_a_reading_nothing_measured_is_shown_and_the_plan_stands() -> None:
    tree = report({}).tree()
    (device,) = tree["devices"]
    assert device["ready"] is False
    assert all(line["parts"] == [] for line in device["kinds"].values())
    table = report({}).text()
    assert "gives no reading" in table and "The API process" not in table
    assert " 0 B" not in table.split("host:")[0]
    planned = device["kinds"]["kv_cache"]["planned_bytes"]
    assert f"\nkv_cache  {format_size(planned)}\n" in _squeezed(table)
    assert "engine process" not in table


def test_where_the_api_process_shows_and_why_free_reads_low_is_explained() -> None:
    read = reading()
    told = report(read).text()
    assert "What the API process has written lies in other_processes." in told
    assert f"free reads low, by {format_size(read['runtime.code'])} at most" in told


def test_what_is_free_is_what_the_formulas_numbers_make() -> None:
    read = reading(total=1000, resident=300, other_processes=250, free=450)
    formula = report(read).tree()["devices"][0]["kinds"]["free"]["formula"]
    total, *less = map(int, re.findall(r" (\d+)", formula))
    assert total - sum(less) == 450


def test_the_table_adds_up_line_by_line() -> None:
    """Each kind to the total; the parts of what is divided whole, to their kind."""
    planned = plan_memory(tiny_llama(), SIZES, 4 * GIB).kinds
    held = {kind: planned.get(kind, 7) for kind in MemoryKind} | {"weights": 12}
    parts = {"active": 5, "cached": 6, "tail_waste": 7}
    pool = {f"kv_cache.{part}": count for part, count in parts.items()}
    pool["kv_cache.free"] = held["kv_cache"] - sum(parts.values())
    inside = {"allocator_slack.free": 7, "runtime.code": 3, "runtime.base": 4}
    (device,) = report(reading(**held, **pool, **inside, total=sum(held.values()))).tree()[
        "devices"
    ]
    assert sum(line["bytes"] for line in device["kinds"].values()) == device["total_bytes"]
    for kind, line in device["kinds"].items():
        if line["parts"]:
            assert sum(part["bytes"] for part in line["parts"]) == line["bytes"], kind


def _squeezed(table: str) -> str:
    """With two blanks between cells."""
    return re.sub(" {2,}", "  ", table)
