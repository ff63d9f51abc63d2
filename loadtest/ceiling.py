"""How many streams this client can drive here before it is the bottleneck itself.

A second process streams nothing of interest at a known pace (loadtest.blank_server), to more and
more streams at once, until the client's own loop or CPU complains. The pace is known, so it also
shows how far the measured gaps are from the truth.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from loadtest.arrivals import ClosedLoop
from loadtest.connection import Address
from loadtest.driver import Target
from loadtest.errors import ServerUnreachable
from loadtest.limits import raise_file_limit
from loadtest.measurement import ROUTES, Options, measure
from loadtest.result import RunResult
from loadtest.scenario import read_scenario
from loadtest.table import aligned, seconds

GAP_S = 0.1  # of each stream: ten tokens a second
LEVELS = (250, 500, 1000, 2000, 3000, 4000, 6000, 8000)
_EVENTS = 40  # a stream: four seconds
_SPARE_FILES = 64


@dataclass(frozen=True, slots=True)
class Level:
    """``server_cpu`` and ``server_late`` are the streaming process's own: it shares the cores."""

    streams: int
    result: RunResult
    server_cpu: float
    server_late: float


async def find_ceiling() -> list[Level]:
    """Levels in order, the last one the first that the client could not keep up with."""
    files = raise_file_limit()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "loadtest.blank_server", str(GAP_S)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    if process.stdout is None or process.stdin is None:
        raise ServerUnreachable("the streaming process could not be started")
    found: list[Level] = []
    try:
        port = int(await process.stdout.readline())
        for streams in LEVELS:
            if streams + _SPARE_FILES > files:
                break
            process.stdin.write(b"\n")
            await process.stdout.readline()
            result = await _at(port, streams)
            process.stdin.write(b"\n")
            fare = json.loads(await process.stdout.readline())
            found.append(Level(streams, result, fare["cpu"], fare["late_p99"]))
            if found[-1].result.client.complaint:
                break
    finally:
        process.stdin.close()
        await process.wait()
    return found


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


def render(levels: list[Level]) -> str:
    """A table, and the ceiling in words."""
    head = ["streams", "events/s", "client CPU", "loop late p99", "ITL p50", "ITL p99"]
    rows = [[*head, "server CPU", "server late p99", ""]]
    for level in levels:
        result, client = level.result, level.result.client
        gaps = result.summaries.get("itl")
        rows.append(
            [
                str(level.streams),
                f"{sum(r.events_with_text for r in result.records) / result.seconds:,.0f}",
                f"{client.cpu:.0%}",
                seconds(client.lag_p99),
                *("" if gaps is None else seconds(gaps.percentiles[p].value) for p in (50.0, 99.0)),
                f"{level.server_cpu:.0%}",
                seconds(level.server_late),
                "too much" if client.complaint else "",
            ]
        )
    return f"{aligned(rows)}\n\n{_verdict(levels)}\n"


def _verdict(levels: list[Level]) -> str:
    kept = list(_kept(levels))
    pace = f"at {1 / GAP_S:.0f} events a second each (true gap {seconds(GAP_S)})"
    if not kept:
        return f"this client cannot keep up with {LEVELS[0]} streams {pace} here"
    more = "" if len(kept) < len(levels) else ", the most that was tried or that may be open"
    return f"this client keeps up with {kept[-1].streams} streams {pace} here{more}"


def _kept(levels: list[Level]) -> Iterator[Level]:
    for level in levels:
        if not level.result.client.complaint and level.result.outcomes["ok"] == level.streams:
            yield level
