"""A schedule is kept, and a client that cannot keep up says so."""

from __future__ import annotations

import asyncio
import gc
import random
import time
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from loadtest.capacity import client_capacity as ceiling
from loadtest.client.connection import Address
from loadtest.client.process import (
    CPU_BOUND,
    LAG_BOUND_S,
    ClientLoad,
    LoadMeter,
    no_full_collections,
)
from loadtest.load.driver import Target
from loadtest.load.result_reader import TURN_S, ResultReader
from loadtest.report.html import page
from loadtest.report.table import render
from loadtest.run import ROUTES, Options, TracedWorkload, measure
from loadtest.stats.records import RequestRecord
from loadtest.workload.arrivals import Recorded
from loadtest.workload.trace import read_trace
from tests.loadtest.loads import run, scenario

TRIES = 3


def test_a_replay_keeps_its_times_at_200_requests_a_second(fake_port: int, tmp_path: Path) -> None:
    """As late as the client's own timers were in the same run, which a busy machine makes late."""
    draw, now, lines = random.Random(3), 0.0, ["time,input,output"]
    for _ in range(600):
        now += draw.expovariate(200.0)
        lines.append(f"{now:.6f},8,2")
    path = tmp_path / "trace.csv"
    path.write_text("\n".join(lines))
    rows = read_trace(path)
    target = Target(Address("127.0.0.1", fake_port), ROUTES["completions"], {})
    one = scenario({"first": 0.01}, run={"requests": len(rows)})
    found = []
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
        late = result.summaries["client_delay"].percentiles[99.0].value
        if late <= 0.005 + 2 * result.client.lag_p99 and result.client.cpu < 0.5:
            return
        found.append(f"late {late:.4f} s (p99), timers {result.client}")
    pytest.fail("\n".join(found))


@pytest.mark.parametrize(
    ("load", "said"),
    [
        (ClientLoad(0.5, 0.0, LAG_BOUND_S / 2, 1.0), None),
        (ClientLoad(CPU_BOUND + 0.05, 0.0, 0.0, 0.0), "used 95% of its core"),
        (
            ClientLoad(0.5, 0.0, 2 * LAG_BOUND_S, 1.0),
            "THE CLIENT WAS THE BOTTLENECK: this client's",
        ),
        (ClientLoad(0.01, 0.0, 2 * LAG_BOUND_S, 1.0), "THE MACHINE WAS BUSY: this client's event"),
    ],
)
def test_a_client_that_is_the_bottleneck_says_so(load: ClientLoad, said: str | None) -> None:
    complaint = load.complaint
    assert complaint is None if said is None else complaint is not None and said in complaint
    # One cause, not two that contradict each other.
    assert complaint is None or ("BOTTLENECK" in complaint) != ("MACHINE" in complaint)


def test_a_run_that_its_client_could_not_keep_up_with_is_marked_everywhere(fake_port: int) -> None:
    measured = run(fake_port, scenario(run={"requests": 3}))
    at_ease = replace(measured, client=ClientLoad(CPU_BOUND - 0.05, 0.0, LAG_BOUND_S / 2, 1.0))
    result = replace(measured, client=ClientLoad(CPU_BOUND + 0.05, 0.0, 0.0, 0.0))
    said = "THE CLIENT WAS THE BOTTLENECK: this client used 95% of its core"
    for shown in (render(result), page([result]), "\n".join(result.as_json()["complaints"])):
        assert said in shown
    assert result.as_json()["client"]["complaint"] == said
    assert said not in render(at_ease)


def test_a_halt_of_the_loop_counts_as_long_as_it_took() -> None:
    """A quarter of the time: the p99 is nearly all of it, although no timer fired meanwhile."""

    async def halted() -> ClientLoad:
        async with LoadMeter() as meter:
            await asyncio.sleep(0.6)
            time.sleep(0.2)
            await asyncio.sleep(0.01)
        return meter.load

    load = asyncio.run(halted())
    assert load.lag_p99 > 0.15 and load.lag_max >= load.lag_p99
    assert load.complaint is not None and "event loop" in load.complaint


def test_answers_that_end_together_are_read_a_little_at_a_time() -> None:
    """Sixty answers of five steps, a tenth of a second's work: the loop turns in between."""
    heard: list[int] = []

    def reading(number: int) -> Generator[None, None, RequestRecord]:
        for _ in range(5):
            time.sleep(TURN_S / 3)
            yield
        return RequestRecord(number, 0.0, 0.0, 0.0, 200, "ok")

    async def read() -> int:
        harvest = ResultReader(lambda record: heard.append(record.index))
        ends = [harvest.add(reading(number)) for number in range(60)]
        turns = 0
        while not ends[-1].done():
            await asyncio.sleep(0)
            turns += 1
        return turns

    assert asyncio.run(read()) > 50
    assert heard == list(range(60))


def test_a_run_puts_full_collections_off_and_gives_them_back() -> None:
    before = gc.get_threshold()
    gc.unfreeze()  # what tests/conftest.py has frozen
    try:
        with no_full_collections():
            assert gc.get_threshold()[2] > 10**6 and gc.get_freeze_count() > 0
        assert gc.get_threshold() == before and gc.get_freeze_count() == 0
    finally:
        gc.freeze()
    with no_full_collections():
        assert gc.get_freeze_count() > 0
    assert gc.get_freeze_count() > 0, "what the caller has frozen stays so"


def test_the_ceiling_is_the_last_level_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceiling, "LEVELS", (4, 8))
    monkeypatch.setattr(ceiling, "_EVENTS", 5)
    levels = asyncio.run(ceiling.find_ceiling())
    assert [level.streams for level in levels] == [4, 8] or levels[-1].result.client.complaint
    assert levels[0].result.outcomes == {"ok": 4}
    assert levels[0].result.summaries["itl"].percentiles[50.0].value == pytest.approx(0.1, abs=0.05)
    assert levels[0].late.shape == (4 * 5,) and 0 <= np.median(levels[0].late) < 0.05
    assert 0 < levels[0].server_cpu < 1 and 0 <= levels[0].server_late < 1
    assert "its steps late p99" in ceiling.render(levels)
