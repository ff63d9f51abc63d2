"""--dtype auto on a CPU: 16 bits only where many rows are at least as fast in them."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

import server.startup.dtype_choice as dtype_choice
from server.config.server_config import resolve
from server.memory.planner.request import PlanRequest
from server.startup.dtype_choice import ProductTime, probe_products, weigh_dtype
from weights.presets import find_preset

GIB = 2**30
LARGE = find_preset("llama-3.2-1b").spec
REQUEST = PlanRequest("bf16", 16, 8, 128)
SLOW = (ProductTime(16, 1e-3, 3e-3), ProductTime(256, 9e-3, 9.9e-3))
FAST = (ProductTime(16, 1e-3, 1e-3), ProductTime(256, 9e-3, 2e-3))
SLOW_WITH_FEW = (ProductTime(16, 1e-3, 2e-3), ProductTime(256, 9e-3, 2e-3))


def unasked(format: str) -> tuple[ProductTime, ...]:
    pytest.fail(f"products in {format} were timed")


def weighed(
    probe: Callable[[str], tuple[ProductTime, ...]],
    request: PlanRequest = REQUEST,
    available: int = 32 * GIB,
    **options: str,
) -> PlanRequest:
    return weigh_dtype(resolve(options, {}), LARGE, request, available, probe)


@pytest.mark.parametrize(
    ("times", "format", "said"),
    [
        (SLOW, "f32", "3.0 x at 16 rows, 1.1 x at 256 rows of float32's time here"),
        (SLOW_WITH_FEW, "f32", "2.0 x at 16 rows, 0.2 x at 256 rows"),
        (FAST, "bf16", "1.0 x at 16 rows, 0.2 x at 256 rows"),
    ],
)
def test_16_bits_are_taken_where_they_are_as_fast(times: Any, format: str, said: str) -> None:
    found = weighed(lambda asked: times if asked == "bf16" else unasked(asked))
    assert found.format == format
    assert said in found.format_reason
    name = {"f32": "float32", "bf16": "bfloat16"}[format]
    assert f"--dtype auto takes {name}" in found.format_reason
    assert replace(found, format="bf16", format_reason="") == REQUEST


def test_float32_that_does_not_fit_is_not_taken() -> None:
    """2.3 GiB of weights in 16 bits: twice that is not there."""
    found = weighed(lambda format: SLOW, available=4 * GIB)
    assert found.format == "bf16" and "float32 does not fit as well" in found.format_reason
    # It would fit with shorter sequences than 16 bits allow.
    short = weighed(lambda format: SLOW, available=6 * GIB)
    assert short.format == "bf16"
    asked = weighed(lambda format: SLOW, replace(REQUEST, max_model_len=512), available=6 * GIB)
    assert asked.format == "f32"


def test_nothing_is_timed_where_there_is_nothing_to_choose() -> None:
    for request, options in (
        (REQUEST, {"dtype": "bfloat16"}),
        (replace(REQUEST, format="f32"), {}),
        (replace(REQUEST, backend="cuda"), {}),
    ):
        assert weighed(unasked, request, **options) == request
    assert weighed(unasked, available=GIB) == REQUEST  # fits in neither


def test_products_that_cannot_be_timed_leave_the_checkpoints_format(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*command: Any, **options: Any) -> subprocess.CompletedProcess[bytes]:
        return subprocess.CompletedProcess(command, 1, b"", b"no torch")

    probe_products.cache_clear()
    monkeypatch.setattr(dtype_choice.subprocess, "run", broken)
    assert weighed(probe_products) == REQUEST
    assert "bfloat16 could not be timed" in caplog.text
    probe_products.cache_clear()


def test_the_probe_times_both_forms_on_this_machine() -> None:
    probe_products.cache_clear()
    times = probe_products("bf16")
    probe_products.cache_clear()
    assert [time.rows for time in times] == [16, 256]
    assert all(0 < time.float32 < 1 and 0.01 < time.ratio < 100 for time in times)
