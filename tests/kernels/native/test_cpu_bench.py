"""The benchmark of a CPU's kernels runs, and says what a share is of."""

from __future__ import annotations

import json

import pytest

from kernels.bench.cpu import __main__ as command
from kernels.bench.cpu import limits, rows
from kernels.bench.cpu.limits import CpuLimits, best
from kernels.bench.cpu.rows import CpuRow

pytestmark = pytest.mark.usefixtures("native_level")

SMALL = (CpuRow(1, 64, 32, "bf16", 0.93), CpuRow(5, 64, 32, "int8", 0.9))


def test_a_share_is_of_reading_for_one_row_and_of_the_product_for_many() -> None:
    limits = CpuLimits({"slow": 1e9, "fast": 2e9}, 4e9)
    one, many = SMALL
    assert one.nbytes == 2 * 64 * 32 + 4 * (64 + 32)
    assert one.share(1e-6, limits) == pytest.approx(one.nbytes / 1e-6 / 2e9)
    assert many.share(1e-6, limits) == pytest.approx(2 * 5 * 64 * 32 / 1e-6 / 4e9)


def test_the_best_of_two_measurements_is_the_machines() -> None:
    found = best(CpuLimits({"a": 1, "b": 4}, 3), CpuLimits({"a": 2, "b": 3}, 5))
    assert (dict(found.loops), found.product, found.read) == ({"a": 2, "b": 4}, 5, 4)


def test_the_command_measures_every_row(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(limits, "READ_BYTES", 1 << 22)
    monkeypatch.setattr(limits, "SIZES", ((8, 16, 32),))
    monkeypatch.setattr(command, "ROWS", SMALL)
    monkeypatch.setattr(rows, "COLD_BYTES", 1 << 16)
    assert command.main(["--samples", "3", "--threads", "1"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["name"] for row in report["rows"]] == [row.name for row in SMALL]
    assert all(len(row["native"]) == 3 and min(row["native"]) > 0 for row in report["rows"])
    assert min(report["limits"]["loops"].values()) > 0
