"""One measurement: a scenario against a target, with everything watched beside it."""

from __future__ import annotations

import asyncio
import os
import platform
import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from loadtest.client.connection import HttpClient
from loadtest.client.process import no_full_collections, raise_file_limit
from loadtest.errors import ScenarioError
from loadtest.load.chaos import Canary, Chaos
from loadtest.load.driver import Bounds, Driver, Target
from loadtest.monitors import Show, Watch
from loadtest.report.result import RunResult
from loadtest.server.scrape import Scraper
from loadtest.stats.records import RequestRecord
from loadtest.stats.warm_up_cut import Steady, find_steady
from loadtest.workload.arrivals import Arrivals, ClosedLoop, load_of
from loadtest.workload.requests import Job, Workload
from loadtest.workload.scenario import Scenario
from loadtest.workload.trace import TraceRow

_END_S = 1.0  # beyond the last request's own time-out
ROUTES = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}


@dataclass(frozen=True, slots=True)
class Options:
    """How to measure, beside what. ``timeout_s`` bounds one request."""

    timeout_s: float = 600.0
    scrape: bool = True
    warm_up: float | None = None  # seconds to leave out; None: found by loadtest.stats.warm_up_cut
    max_in_flight: int = 20_000


class TracedWorkload(Workload):
    """Jobs with the lengths and groups of a trace's rows."""

    def __init__(self, scenario: Scenario, model: str | None, rows: tuple[TraceRow, ...]) -> None:
        """Raises ScenarioError for groups whose prefix has no length."""
        super().__init__(scenario, model)
        if not scenario.kinds[0].shared_prefix_tokens and any(
            row.group is not None and row.prefix is None for row in rows
        ):
            raise ScenarioError(
                f"the trace has groups; how many tokens they share is neither in a column prefix "
                f"nor in the scenario {scenario.name} (shared_prefix_tokens)"
            )
        self._seed = scenario.seed
        self._rows = rows
        names = sorted({row.group for row in rows if row.group is not None})
        self._groups = {name: place for place, name in enumerate(names)}

    def jobs(self) -> Iterator[Job]:
        for index in range(len(self._rows)):
            yield self.job(index)

    def job(self, index: int) -> Job:
        row = self._rows[index]
        draw = random.Random(f"{self._seed}:{index}")
        # A request without a group has a prefix of its own.
        group = len(self._groups) + index if row.group is None else self._groups[row.group]
        shared = 0 if row.group is None else row.prefix
        return self.job_of(index, 0, draw, row.input, row.output, group, shared)


async def measure(
    scenario: Scenario,
    target: Target,
    model: str | None,
    *,
    arrivals: Arrivals | ClosedLoop | None = None,
    workload: Workload | None = None,
    options: Options | None = None,
    show: Show | None = None,
) -> RunResult:
    """Runs the scenario to its end; when cancelled (Ctrl-C), the result is of the part that ran."""
    options = options or Options()
    raise_file_limit()
    arrivals = arrivals or scenario.arrivals
    records: list[RequestRecord] = []
    refusal = Refusal()

    def on_record(record: RequestRecord) -> None:
        records.append(record)
        if refusal.note(record):
            driver.stop()

    driver = Driver(
        HttpClient(target.address, options.timeout_s),
        target,
        workload or Workload(scenario, model),
        Chaos(scenario.chaos, scenario.seed),
        on_record,
    )
    scraper = Scraper(target, driver.now)
    canary = Canary(target, model, scenario.api, options.timeout_s) if scenario.chaos else None
    watch = Watch(driver, scraper, canary, scrape=options.scrape, show=show)
    await watch.begin()
    interrupted = False
    try:
        async with watch.beside(records):
            with no_full_collections():
                await driver.run(arrivals, _bounds(scenario, options), scenario.seed)
    except asyncio.CancelledError:
        interrupted = True
    seconds = driver.now()
    driver.finish()
    records.sort(key=lambda record: record.ended)
    await watch.end(settles=not interrupted)
    return RunResult(
        scenario=_facts(scenario, arrivals),
        target=f"{target.address.authority}{target.address.prefix}{target.path}",
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=machine(),
        seconds=seconds,
        records=records,
        steady=_steady(records, driver, options),
        client=watch.meter.load,
        server=scraper.series,
        canary=None if canary is None else canary.report,
        objectives=dict(scenario.objectives),
        not_sent=driver.not_sent,
        refused=refusal.reason,
        interrupted=interrupted,
        closed_loop=isinstance(arrivals, ClosedLoop),
    )


def _bounds(scenario: Scenario, options: Options) -> Bounds:
    return Bounds(
        scenario.seconds,
        scenario.requests,
        grace_s=options.timeout_s + _END_S,
        max_in_flight=options.max_in_flight,
    )


def machine() -> str:
    """The client's machine by its cores and instruction set alone."""
    cores = len(os.sched_getaffinity(0))
    flags = Path("/proc/cpuinfo")
    best = ""
    if flags.exists():
        text = flags.read_text()
        known = ("amx_tile", "avx512f", "avx2", "sve", "asimd")
        best = next((f", {flag}" for flag in known if f" {flag} " in text), "")
    return f"{cores} cores, {platform.machine()}{best}"


def _steady(records: list[RequestRecord], driver: Driver, options: Options) -> Steady:
    end = driver.now() if driver.sent_until is None else driver.sent_until
    if options.warm_up is None:
        return find_steady([r for r in records if r.kind == "normal"], end)
    return Steady(options.warm_up, end, True, f"the first {options.warm_up:g} s left out, as asked")


def _facts(scenario: Scenario, arrivals: Arrivals | ClosedLoop) -> dict[str, Any]:
    """The scenario in a result's words."""
    return {
        "name": scenario.name,
        "description": scenario.description,
        "api": scenario.api,
        "seed": scenario.seed,
        "arrivals": arrivals.describe(),
        "load": load_of(arrivals),
        "requests": [
            {
                "weight": kind.weight,
                "prompt_tokens": kind.prompt.describe(),
                "output_tokens": kind.output.describe(),
                "shared_prefix_tokens": kind.shared_prefix_tokens,
                "prefix_groups": kind.prefix_groups,
                "turns": kind.turns,
            }
            for kind in scenario.kinds
        ],
        "chaos": dict(scenario.chaos),
    }


# Ends a run early that measures nothing: a server that refuses what the scenario asks for.

ENOUGH = 10
_OF_THE_MOMENT = (408, 425, 429)  # these speak of the server's state, not of the request


class Refusal:
    """Sees a server that refuses the scenario itself: its first answers say so, all of them."""

    def __init__(self) -> None:
        self._refused = 0
        self._accepted = False
        self.reason: str | None = None  # set once it is plain

    def note(self, record: RequestRecord) -> bool:
        """Whether it has just become plain."""
        if record.kind != "normal" or self._accepted or self.reason is not None:
            return False
        self._accepted = not 400 <= record.status < 500 or record.status in _OF_THE_MOMENT
        self._refused += not self._accepted
        if self._refused < ENOUGH:
            return False
        self.reason = f"HTTP {record.status}: {record.detail}"
        return True
