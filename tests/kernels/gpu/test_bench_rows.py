"""Every row of the benchmark runs: small shapes, timed by whatever clock there is."""

from __future__ import annotations

import pytest
import torch

from kernels.bench.row import Limits, Row
from kernels.bench.suite import Machine, all_rows, run_row
from kernels.bench.timing import GraphTimer, HostTimer

# Triton's interpreter with the numpy that it needs.


@pytest.mark.parametrize("row", all_rows(tiny=True), ids=lambda row: row.name)
def test_every_contender_of_a_row_runs_or_says_why_not(row: Row, device: torch.device) -> None:
    torch.manual_seed(1)
    timer = GraphTimer(samples=3) if device.type == "cuda" else HostTimer()
    machine = Machine(device, timer, Limits(copy=4.3e12, product=7.9e14), cache_bytes=0)
    outcomes, skipped = run_row(row, machine, seconds=1.0)
    assert [reason for reason in skipped if reason.failed] == []
    told = {outcome.contender for outcome in outcomes} | {reason.contender for reason in skipped}
    assert told == {contender.name for contender in row.contenders}
    assert {contender.name for contender in row.contenders if contender.own} <= {
        outcome.contender for outcome in outcomes
    }
    assert all(outcome.microseconds > 0 and outcome.fraction > 0 for outcome in outcomes)
