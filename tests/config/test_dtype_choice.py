"""--dtype auto on a CPU: 16 bits only where many rows are at least as fast in them."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

import server.startup.dtype_choice as dtype_choice
from server.memory.engine_args import EngineArgs
from server.startup.dtype_choice import ProductTime, choose_dtype, probe_products
from weights.presets import find_preset

GIB = 2**30
LARGE = find_preset("llama-3.2-1b").spec
ASKED = EngineArgs(device="cpu", max_num_seqs=8, max_num_batched_tokens=128)
NARROW = replace(ASKED, dtype="bfloat16")
SLOW = (ProductTime(16, 1e-3, 3e-3), ProductTime(256, 9e-3, 9.9e-3))
FAST = (ProductTime(16, 1e-3, 1e-3), ProductTime(256, 9e-3, 2e-3))
SLOW_WITH_FEW = (ProductTime(16, 1e-3, 2e-3), ProductTime(256, 9e-3, 2e-3))


def unasked(format: str) -> tuple[ProductTime, ...]:
    pytest.fail(f"products in {format} were timed")


def weighed(
    probe: Callable[[str], tuple[ProductTime, ...]],
    asked: EngineArgs = ASKED,
    available: int = 32 * GIB,
    stored: str = "bf16",
) -> tuple[EngineArgs, str]:
    return choose_dtype(asked, LARGE, stored, available, probe)


@pytest.mark.parametrize(
    ("times", "dtype", "said"),
    [
        (SLOW, "float32", "3.0 x at 16 rows, 1.1 x at 256 rows of float32's time here"),
        (SLOW_WITH_FEW, "float32", "2.0 x at 16 rows, 0.2 x at 256 rows"),
        (FAST, "bfloat16", "1.0 x at 16 rows, 0.2 x at 256 rows"),
    ],
)
def test_16_bits_are_taken_where_they_are_as_fast(times: Any, dtype: str, said: str) -> None:
    found, reason = weighed(lambda format: times if format == "bf16" else unasked(format))
    assert found == replace(ASKED, dtype=dtype)
    assert said in reason
    assert f"--dtype auto takes {dtype}" in reason


def test_float32_that_does_not_fit_is_not_taken() -> None:
    """2.3 GiB of weights in 16 bits: twice that is not there."""
    found, reason = weighed(lambda format: SLOW, available=4 * GIB)
    assert found == NARROW and "float32 does not fit as well" in reason
    # It would fit with shorter sequences than 16 bits allow.
    short, _ = weighed(lambda format: SLOW, available=6 * GIB)
    assert short == NARROW
    fits, _ = weighed(lambda format: SLOW, replace(ASKED, max_model_len=512), available=6 * GIB)
    assert fits.dtype == "float32"


def test_nothing_is_timed_where_there_is_nothing_to_choose() -> None:
    assert weighed(unasked, NARROW) == (NARROW, "")
    assert weighed(unasked, stored="f32") == (replace(ASKED, dtype="float32"), "")
    on_a_gpu = replace(ASKED, device="cuda")
    assert weighed(unasked, on_a_gpu) == (replace(on_a_gpu, dtype="bfloat16"), "")
    assert weighed(unasked, available=GIB) == (NARROW, "")  # fits in neither


def test_products_that_cannot_be_timed_leave_the_checkpoints_format(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*command: Any, **options: Any) -> subprocess.CompletedProcess[bytes]:
        return subprocess.CompletedProcess(command, 1, b"", b"no torch")

    probe_products.cache_clear()
    monkeypatch.setattr(dtype_choice.subprocess, "run", broken)
    assert weighed(probe_products) == (NARROW, "")
    assert "bfloat16 could not be timed" in caplog.text
    probe_products.cache_clear()


def test_the_probe_times_both_forms_on_this_machine() -> None:
    probe_products.cache_clear()
    times = probe_products("bf16")
    probe_products.cache_clear()
    assert [time.rows for time in times] == [16, 256]
    assert all(0 < time.float32 < 1 and 0.01 < time.ratio < 100 for time in times)
