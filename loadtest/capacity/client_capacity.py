"""How many streams this client can drive here before it is the bottleneck itself.

A second process streams nothing of interest at a known pace (loadtest.capacity.null_server), to
more and more streams at once, until the client's own loop or CPU complains. Each event holds the
time at which it was written, so it also shows how late this client's times are.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from loadtest.client.connection import Address
from loadtest.client.process import raise_file_limit
from loadtest.errors import ServerUnreachable
from loadtest.load.driver import Target
from loadtest.report.result import RunResult
from loadtest.report.table import aligned, seconds
from loadtest.run import ROUTES, Options, measure
from loadtest.stats.measures import Floats
from loadtest.workload.arrivals import ClosedLoop
from loadtest.workload.scenario import read_scenario

GAP_S = 0.1  # of each stream: ten tokens a second
LEVELS = (250, 500, 1000, 2000, 3000, 4000, 6000, 8000)
_EVENTS = 40  # a stream: four seconds
_SPARE_FILES = 64


@dataclass(frozen=True, slots=True)
class Level:
    """``late`` are the client's times of events past the moment each was written, beyond the least.

    ``server_cpu`` and ``server_late`` are the streaming process's own: it shares the cores.
    """

    streams: int
    result: RunResult
    late: Floats
    server_cpu: float
    server_late: float


async def find_ceiling() -> list[Level]:
    """Levels in order, the last one the first that the client could not keep up with."""
    files = raise_file_limit()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "loadtest.capacity.null_server", str(GAP_S)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    if process.stdout is None or process.stdin is None:
        raise ServerUnreachable("the streaming process could not be started")
    found: list[Level] = []
    cores = os.sched_getaffinity(0)
    try:
        _a_core_each(process.pid, sorted(cores))
        port = int(await process.stdout.readline())
        for streams in LEVELS:
            if streams + _SPARE_FILES > files:
                break
            process.stdin.write(b"\n")
            await process.stdout.readline()
            result = await _at(port, streams)
            process.stdin.write(b"\n")
            fare = json.loads(await process.stdout.readline())
            found.append(Level(streams, result, _late(result), fare["cpu"], fare["late_p99"]))
            if found[-1].result.client.complaint:
                break
    finally:
        os.sched_setaffinity(0, cores)
        process.stdin.close()
        await process.wait()
    return found


def _a_core_each(pid: int, cores: Sequence[int]) -> None:
    """A scheduler may put both on one core, where the client waits 3 ms for its turn."""
    if len(cores) > 1:
        os.sched_setaffinity(0, cores[:1])
        os.sched_setaffinity(pid, cores[1:])


async def _at(port: int, streams: int) -> RunResult:
    scenario = read_scenario(
        {
            "name": "ceiling",
            "arrivals": {"kind": "closed", "concurrency": streams},
            "run": {"requests": streams},
            "requests": [{"prompt_tokens": 8, "output_tokens": _EVENTS}],
        },
        "ceiling",
    )
    target = Target(Address("127.0.0.1", port), ROUTES["completions"], {})
    return await measure(
        scenario,
        target,
        "blank",
        arrivals=ClosedLoop(streams),
        options=Options(timeout_s=120.0, scrape=False, warm_up=0.0),
    )


def _late(result: RunResult) -> Floats:
    """Seconds [events]. The clocks are one; only where a run's second 0 lies is taken from it."""
    written = [float(text) for record in result.records for text in record.text.split()]
    stamped = [time for record in result.records for time in record.token_times]
    late = np.array(stamped) - np.array(written)
    found: Floats = late - late.min(initial=np.inf)
    return found


def render(levels: list[Level]) -> str:
    """A table, and the ceiling in words."""
    head = ["streams", "events/s", "client CPU", "loop late p99", "times late p50", "p99"]
    rows = [[*head, "server CPU", "its steps late p99", ""]]
    for level in levels:
        result, client = level.result, level.result.client
        rows.append(
            [
                str(level.streams),
                f"{sum(r.events_with_text for r in result.records) / result.seconds:,.0f}",
                f"{client.cpu:.0%}",
                seconds(client.lag_p99),
                *(seconds(float(value)) for value in np.percentile(level.late, (50, 99))),
                f"{level.server_cpu:.0%}",
                seconds(level.server_late),
                "too much" if client.complaint else "",
            ]
        )
    return f"{aligned(rows)}\n\n{_verdict(levels)}\n"


def _verdict(levels: list[Level]) -> str:
    kept = list(_kept(levels))
    pace = f"at {1 / GAP_S:.0f} events a second each, all at the same moments,"
    if not kept:
        return f"this client cannot keep up with {LEVELS[0]} streams {pace} here"
    more = "" if len(kept) < len(levels) else ", the most that was tried or that may be open"
    return f"this client keeps up with {kept[-1].streams} streams {pace} here{more}"


def _kept(levels: list[Level]) -> Iterator[Level]:
    for level in levels:
        if not level.result.client.complaint and level.result.outcomes["ok"] == level.streams:
            yield level
