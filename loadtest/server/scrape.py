"""Reads the server's /metrics once a second, on the same time axis as the requests.

The text format is Prometheus' (0.0.4) and is read by prometheus_client. A scrape that fails leaves
a gap, which is counted; a server without /metrics is measured without.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from loadtest.client.connection import HttpClient, request_head
from loadtest.client.exchange import Exchange
from loadtest.load.driver import Target
from loadtest.server.metric_names import DIALECTS, Dialect, Name

SETTLE_S = 10.0
_TOLERANCE = {"kv_usage": 1e-6}


@dataclass(frozen=True, slots=True)
class Reading:
    """One scrape, at ``second`` from the run's start; before it, at 0.

    ``queue`` counts the requests that waited no longer than each bound in seconds.
    """

    second: float
    gauges: Mapping[str, float]
    counters: Mapping[str, float]
    memory: Mapping[str, float]
    queue: Mapping[float, float] = field(default_factory=dict)


@dataclass(slots=True)
class ServerSeries:
    """All readings of a run, and what they say about its end."""

    server: str | None = None
    readings: list[Reading] = field(default_factory=list)
    failed: int = 0
    not_back: dict[str, tuple[float, float]] = field(default_factory=dict)  # gauge: before, after


def read_metrics(text: str, second: float) -> tuple[Dialect | None, Reading]:
    """The facts in an exposition; no dialect where no known server wrote it.

    Raises ValueError for a text that is not an exposition.
    """
    lines = text.splitlines()
    dialect = next(
        (known for known in DIALECTS if any(line.startswith(known.marks) for line in lines)), None
    )
    if dialect is None:
        return None, Reading(second, {}, {}, {})
    # Only what is wanted goes through the parser: hundreds of lines take milliseconds each second.
    wanted = dialect.metrics
    few = "\n".join(line for line in lines if line.startswith(wanted))
    samples: dict[str, list[Sample]] = {}
    for family in text_string_to_metric_families(f"{few}\n"):
        for sample in family.samples:
            samples.setdefault(sample.name, []).append(sample)
    memory = {
        sample.labels["kind"]: sample.value
        for sample in samples.get(dialect.memory or "", ())
        if "kind" in sample.labels
    }
    queue: dict[float, float] = {}
    for sample in samples.get(dialect.queue or "", ()):
        bound = float(sample.labels.get("le", "inf"))
        queue[bound] = queue.get(bound, 0.0) + sample.value
    return dialect, Reading(
        second, _facts(dialect.gauges, samples), _facts(dialect.counters, samples), memory, queue
    )


def _facts(names: Mapping[str, Name], samples: Mapping[str, list[Sample]]) -> dict[str, float]:
    found = {}
    for fact, name in names.items():
        wanted = set(name.labels)
        values = [
            sample.value
            for sample in samples.get(name.metric, ())
            if wanted <= set(sample.labels.items())
        ]
        if values:
            found[fact] = sum(values) * name.factor
    return found


class Scraper:
    """Reads until it is stopped; a connection of its own, so that it waits behind no request."""

    def __init__(self, target: Target, now: Callable[[], float], period_s: float = 1.0) -> None:
        self._client = HttpClient(target.address, timeout_s=5.0)
        self._target = target
        self._now = now
        self._period_s = period_s
        self._baseline: Sequence[str] = ()
        self.series = ServerSeries()

    async def once(self) -> Reading | None:
        """One scrape, kept in the series; None where the server gave none."""
        head = request_head(self._target.address, "GET", "/metrics", 0, self._target.headers)
        exchange = Exchange(head, b"")
        await self._client.send(exchange)
        if exchange.failure is not None or exchange.status != 200:
            self.series.failed += 1
            return None
        try:
            dialect, reading = read_metrics(exchange.body.decode("utf-8"), self._now())
        except (ValueError, UnicodeDecodeError):
            self.series.failed += 1
            return None
        if dialect is None:
            return None
        self.series.server, self._baseline = dialect.server, dialect.baseline
        self.series.readings.append(reading)
        return reading

    async def watch(self) -> None:
        """Until it is cancelled."""
        while True:
            await self.once()
            await asyncio.sleep(self._period_s)

    async def settle(self, before: Reading | None) -> None:
        """Waits for the gauges of its baseline to return to ``before``; notes those that do not."""
        if before is None:
            return
        for _ in range(round(SETTLE_S / 0.25)):
            after = await self.once()
            if after is not None:
                self.series.not_back = _not_back(self._baseline, before, after)
                if not self.series.not_back:
                    return
            await asyncio.sleep(0.25)

    async def close(self) -> None:
        await self._client.close()


def _not_back(
    baseline: Sequence[str], before: Reading, after: Reading
) -> dict[str, tuple[float, float]]:
    """Gauges that are higher than before. A lower one was not at rest when the run began."""
    return {
        fact: (before.gauges[fact], after.gauges[fact])
        for fact in baseline
        if fact in before.gauges
        and fact in after.gauges
        and after.gauges[fact] > before.gauges[fact] + _TOLERANCE.get(fact, 0.0)
    }
