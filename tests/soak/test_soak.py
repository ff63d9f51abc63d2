"""Half a minute of what `make soak` does for ten; and that what a soak must find is found."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from tests.soak.beside import beside, percentile
from tests.soak.heavy import KINDS
from tests.soak.soak import MIB, Result, soak
from tests.soak.traffic import CHAT, COMPLETIONS, Counts

SECONDS = 30


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_half_a_minute_with_crashing_clients_leaves_nothing_and_every_request_is_counted_once(
    tmp_path: Path,
) -> None:
    result = soak(SECONDS, tmp_path / "soak.log")
    assert not result.faults(), "\n".join(result.lines())
    kinds = result.counts.kinds
    crashes = {kind for kind in kinds if kind.startswith("crash: ")}
    assert len(crashes) == 4
    assert min(kinds["stream"], kinds["whole answer"], kinds["invalid"]) > 0
    assert result.counts.crashed > len(crashes)
    assert result.outcomes["abort"] > 0
    assert len(result.family) >= 2  # the engine, and what renders templates


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_good_client_is_served_beside_heavy_ones(tmp_path: Path) -> None:
    phases = beside(1, tmp_path / "beside.log", say=print)
    assert {phase.kind for phase in phases} > KINDS.keys()
    for phase in phases:
        assert phase.statuses.keys() == {200}, phase.row()


def held() -> Result:
    """What a soak of 15 requests comes to, two of them from clients that crashed in time."""
    counts = Counts(
        submitted=Counter({COMPLETIONS: 10, CHAT: 5}), answered=11, invalid=1, crashed=3
    )
    return Result(
        seconds=1,
        counts=counts,
        outcomes={"stop": 4, "length": 8, "abort": 2, "invalid": 1, "overloaded": 0, "error": 0},
        routes={COMPLETIONS: 10, CHAT: 5},
        log_lines=(15, 15),
        memory={"API": [5 * MIB, 9 * MIB, 6 * MIB - 1]},
        descriptors={"API": (["a", "b"], ["a", "b"])},
        exit_code=0,
        family=[1, 2],
    )


def test_a_soak_that_held_has_no_fault() -> None:
    assert held().faults() == []
    assert held().lines()[-1] == "  held"


@pytest.mark.parametrize(
    "change",
    [
        {"outcomes": {"stop": 4, "length": 8, "abort": 3, "invalid": 1}},
        {"outcomes": {"stop": 4, "length": 8, "abort": 1, "invalid": 1}},
        {"outcomes": {"stop": 2, "length": 8, "abort": 4, "invalid": 1}},
        {"outcomes": {"stop": 4, "length": 8, "abort": 1, "invalid": 2}},
        {"outcomes": {"stop": 4, "length": 8, "abort": 1, "invalid": 1, "overloaded": 1}},
        {"outcomes": {"stop": 4, "length": 8, "abort": 1, "invalid": 1, "error": 1}},
        {"routes": {COMPLETIONS: 11, CHAT: 4}},
        {"log_lines": (15, 14)},
        {"log_lines": (14, 14)},
        {"restarts": 1},
        {"memory": {"API": [5 * MIB, 5 * MIB, 6 * MIB]}},
        {"descriptors": {"API": (["a"], ["a", "b"])}},
        {"raised": {"quire_requests_running": 1.0}},
        {"exit_code": 1},
        {"exit_code": None},
        {"left_running": [2]},
        {"counts": replace(held().counts, problems=["canary: another answer"])},
    ],
    ids=str,
)
def test_whatever_does_not_hold_is_a_fault(change: dict[str, object]) -> None:
    found = replace(held(), **change)  # type: ignore[arg-type]
    assert found.faults()
    assert found.lines()[-1] == f"  FAULT: {found.faults()[-1]}"


def test_percentiles_are_values_that_were_measured() -> None:
    seconds = [float(n) for n in range(1, 101)]
    assert [percentile(seconds, share) for share in (0.5, 0.99, 1.0)] == [50.0, 99.0, 100.0]
    assert percentile([7.0], 0.99) == 7.0
