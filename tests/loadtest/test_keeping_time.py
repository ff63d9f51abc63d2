"""A schedule is kept, and a client that cannot keep up says so."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from loadtest import ceiling
from loadtest.arrivals import Recorded
from loadtest.client_load import CPU_BOUND, LAG_BOUND_S, ClientLoad
from loadtest.connection import Address
from loadtest.driver import Target
from loadtest.measurement import ROUTES, Options, TracedWorkload, measure
from loadtest.trace import read_trace
from tests.loadtest.loads import scenario

TRIES = 4


def test_a_replay_keeps_its_times_at_200_requests_a_second(fake_port: int, tmp_path: Path) -> None:
    """A machine that is busy with something else may delay a run: it may be repeated."""
    draw, now, lines = random.Random(3), 0.0, ["time,input,output"]
    for _ in range(600):
        now += draw.expovariate(200.0)
        lines.append(f"{now:.6f},8,2")
    path = tmp_path / "trace.csv"
    path.write_text("\n".join(lines))
    rows = read_trace(path)
    target = Target(Address("127.0.0.1", fake_port), ROUTES["completions"], {})
    one = scenario({"first": 0.01}, run={"requests": len(rows)})
    late = []
    for _ in range(TRIES):
        result = asyncio.run(
            measure(
                one,
                target,
                "fake",
                arrivals=Recorded(tuple(row.time for row in rows)),
                workload=TracedWorkload(one, "fake", rows),
                options=Options(timeout_s=20, warm_up=0.0),
            )
        )
        assert result.outcomes == {"ok": 600}
        late.append(result.summaries["client_delay"].percentiles[99.0].value)
        if late[-1] <= 0.005:
            return
    pytest.fail(f"requests were late by (p99): {late}")


@pytest.mark.parametrize(
    ("load", "said"),
    [
        (ClientLoad(0.5, 0.0, LAG_BOUND_S / 2, 1.0), None),
        (ClientLoad(CPU_BOUND + 0.05, 0.0, 0.0, 0.0), "used 95% of its core"),
        (ClientLoad(0.5, 0.0, 2 * LAG_BOUND_S, 1.0), "40 ms late (p99)"),
    ],
)
def test_a_client_that_is_the_bottleneck_says_so(load: ClientLoad, said: str | None) -> None:
    complaint = load.complaint
    assert complaint is None if said is None else complaint is not None and said in complaint


def test_the_ceiling_is_the_last_level_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceiling, "LEVELS", (4, 8))
    monkeypatch.setattr(ceiling, "_EVENTS", 5)
    levels = asyncio.run(ceiling.find_ceiling())
    assert [level.streams for level in levels] == [4, 8] or levels[-1].result.client.complaint
    assert levels[0].result.outcomes == {"ok": 4}
    assert levels[0].result.summaries["itl"].percentiles[50.0].value == pytest.approx(0.1, abs=0.05)
    assert "events/s" in ceiling.render(levels)
