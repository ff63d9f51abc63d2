"""The books of a real GPU against NVML: idle, under load, and with memory that nobody told them of.

Every figure is kept as JSON beside those of the kernels, whether the bounds hold or not.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from server.memory.kinds import MemoryKind
from tests.gpu.gpu_engine import shape
from weights.synthetic.checkpoint import write_checkpoint

MIB = 2**20
REPOSITORY = Path(__file__).parents[2]
RESULTS = REPOSITORY / "kernels" / "bench" / "results"
MOMENTS = ("idle", "load", "after")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    folder = tmp_path_factory.mktemp("model")
    write_checkpoint(shape(), folder, seed=0, format="bf16")
    result = subprocess.run(
        [sys.executable, "-m", "tests.gpu.books_on_gpu_probe", str(folder)],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        timeout=280,
    )
    assert result.returncode == 0, result.stderr
    kept: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"books-{datetime.now(UTC):%Y%m%d-%H%M%S}.json"
    path.write_text(json.dumps(kept, indent=1) + "\n")
    return kept


def books(found: Mapping[str, Any], moment: str) -> Mapping[str, int]:
    read: Mapping[str, int] = found["readings"][moment]["books"]
    return read


def is_near(measured: int, planned: int) -> bool:
    return abs(measured - planned) <= max(0.02 * planned, 8 * MIB)


@pytest.mark.parametrize("moment", MOMENTS)
def test_the_books_close(found: Mapping[str, Any], moment: str) -> None:
    read = books(found, moment)
    assert sum(read[kind] for kind in MemoryKind) == read["total"]
    assert abs(read["unaccounted"]) <= max(0.01 * read["total"], 64 * MIB)
    assert min(read[kind] for kind in MemoryKind if kind is not MemoryKind.UNACCOUNTED) >= 0


@pytest.mark.parametrize("moment", MOMENTS)
def test_they_are_nvmls_figures(found: Mapping[str, Any], moment: str) -> None:
    read, nvml = books(found, moment), found["readings"][moment]["nvml"]
    if nvml["total"] is None:
        pytest.skip("there is no NVML here")
    assert read["total"] == nvml["total"]
    assert abs(read["free"] - nvml["free"]) <= 64 * MIB  # others may come and go
    if nvml["own"] is not None:
        assert abs(read["resident"] - nvml["own"]) <= 64 * MIB


@pytest.mark.parametrize("kind", ["weights", "kv_cache", "io", "graphs"])
def test_what_was_planned_is_what_is_held(found: Mapping[str, Any], kind: str) -> None:
    assert is_near(books(found, "load")[kind], found["plan"][kind])


def test_each_component_of_the_weights_is_as_planned(found: Mapping[str, Any]) -> None:
    planned, measured = found["weights"]["planned"], found["weights"]["measured"]
    assert set(planned) == set(measured)
    for component, nbytes in planned.items():
        assert abs(measured[component] - nbytes) <= 0.02 * nbytes, component


def test_scratch_is_as_planned_beside_the_libraries_own(found: Mapping[str, Any]) -> None:
    read = books(found, "load")
    assert is_near(read["workspace"] - read["workspace.libraries"], found["plan"]["workspace"])


def test_the_largest_step_keeps_to_its_plan(found: Mapping[str, Any]) -> None:
    peak, planned = books(found, "load")["activations.peak"], found["plan"]["activations"]
    assert 0 < peak <= 1.02 * planned + 8 * MIB


def test_pinned_memory_is_what_was_listed(found: Mapping[str, Any]) -> None:
    assert books(found, "load")["host.pinned"] == found["pinned_planned"]


def test_64_mib_behind_the_allocators_back_show_until_they_are_freed(
    found: Mapping[str, Any],
) -> None:
    before, held, freed = (books(found, f"{when} behind") for when in ("before", "held", "freed"))
    estimated = held["estimated.other_processes"]
    kind = MemoryKind.OTHER_PROCESSES if estimated else MemoryKind.UNACCOUNTED
    assert abs(held[kind] - before[kind] - 64 * MIB) <= 4 * MIB
    assert abs(freed[kind] - before[kind]) <= 4 * MIB
    assert held["runtime"] == before["runtime"]
