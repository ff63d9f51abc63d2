"""Requests made to exceed the plan: none of them finds memory lacking, and none takes more than was
planned, at a small budget and at the least that the planner accepts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from server.config.server_config import resolve
from server.errors import StartupError
from server.memory.backends.native_cpu import NATIVE
from server.memory.backends.torch_cpu import TORCH
from server.startup.model_info import read_model
from server.units import exact_size
from tests.memory.accounting import figures_of
from tests.memory.adversarial_mixes import BLOCK_BYTES, LEAST_BLOCKS, LIMITS, MAX_LEN, MODEL, VOCAB
from tests.native_kernels import needs_native
from weights.synthetic.checkpoint import write_checkpoint, write_tokenizer

MIB = 2**20
LEAST = LEAST_BLOCKS * BLOCK_BYTES
SMALL = 4 * LEAST
TENSORS = ("weights", "kv_cache", "io", "workspace", "activations")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("adversarial")
    write_checkpoint(MODEL, path, seed=1, sharp=False)
    write_tokenizer(path, VOCAB)
    return path


def serve(
    folder: Path, kv_bytes: int, first: int, count: int, backend: str = TORCH.name
) -> dict[str, Any]:
    arguments = (folder, kv_bytes, first, count, backend)
    module = "tests.memory.adversarial_mixes"
    return figures_of(module, *arguments, timeout=3000, quiet="out of memory in step")


def assert_within_the_plan(found: Mapping[str, Any]) -> None:
    """Of torch's operations, which make what a step needs anew."""
    assert_not_above_the_plan(found)
    plan, reading = found["plan"], found["reading"]
    for kind, planned in plan.items():
        peak = reading[f"{kind}.peak"]
        if planned > 64 * MIB:
            assert planned <= 1.15 * peak, (kind, peak, planned)
    assert plan["activations"] > 64 * MIB, "a kind that a bound in MiB would not hide"
    assert found["resident_peak"] >= plan["activations"] / 1.15


def assert_not_above_the_plan(found: Mapping[str, Any]) -> None:
    plan, reading = found["plan"], found["reading"]
    assert found["errors"] == []
    assert found["failed_steps"] == found["held_blocks"] == 0
    for message in found["refusals"]:
        assert re.search(r"\d", message), message
    assert set(plan) == set(TENSORS)
    for kind, planned in plan.items():
        peak = reading[f"{kind}.peak"]
        assert peak <= planned, (kind, peak, planned)
    # What operations hold inside themselves is in the plan, and what Python grew by is beside it.
    assert found["resident_peak"] <= plan["activations"] + 16 * MIB


def test_adversarial_mixes_stay_within_the_least_plan(folder: Path) -> None:
    """`make test-slow` has many more, at a larger budget too."""
    found = serve(folder, LEAST, 0, 8)
    assert found["blocks"] == LEAST_BLOCKS
    assert_within_the_plan(found)
    assert {"finished", "left", "refused CAPACITY"} <= found["counts"].keys()


@needs_native
def test_native_kernels_stay_within_the_least_plan(folder: Path) -> None:
    """They hold a step's values for good: what is made anew is logits, and what chooses a token."""
    found = serve(folder, LEAST, 0, 8, NATIVE.name)
    assert_not_above_the_plan(found)
    assert found["plan"]["io"] == found["reading"]["io.peak"] > 64 * MIB
    assert {"finished", "left", "refused CAPACITY"} <= found["counts"].keys()


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "count",
    [
        pytest.param(60, marks=pytest.mark.slow),
        pytest.param(500, marks=pytest.mark.sweep),
    ],
)
def test_hundreds_of_adversarial_mixes_stay_within_the_plan(folder: Path, count: int) -> None:
    """The same mixes at both budgets, side by side: each engine computes on one thread."""
    with ThreadPoolExecutor() as pool:
        small, least = pool.map(lambda budget: serve(folder, budget, 1000, count), (SMALL, LEAST))
    for found in (small, least):
        assert_within_the_plan(found)
        wanted = {"finished", "left", "refused CAPACITY", "refused CONTEXT_LENGTH"}
        assert wanted <= found["counts"].keys()
    assert (small["blocks"], least["blocks"]) == (4 * LEAST_BLOCKS, LEAST_BLOCKS)
    assert least["preemptions"] > 0


def test_less_than_the_least_budget_is_refused_with_the_figure(folder: Path) -> None:
    options = {"model-dir": str(folder), "dtype": "float32", **LIMITS}
    config = resolve({**options, "kv-cache-memory": str(LEAST - BLOCK_BYTES)}, {})
    with pytest.raises(StartupError) as raised:
        read_model(config)
    message = str(raised.value)
    assert "8.00 KiB" in message, message  # what lacks, and what would fit
    assert f"--max-model-len {MAX_LEN - 16}" in message
    assert f"--kv-cache-memory {exact_size(LEAST)}" in message
