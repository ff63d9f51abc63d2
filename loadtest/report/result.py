"""The result of one run: everything that tables, pages and comparisons are made of, as JSON.

A result file holds the definitions beside the figures, and the requests one by one, so that another
measure can be taken from it later.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from loadtest.client.process import ClientLoad
from loadtest.errors import ScenarioError
from loadtest.load.chaos import CanaryReport
from loadtest.server.readings import ServerSide, server_side
from loadtest.server.scrape import ServerSeries
from loadtest.stats.measures import CONFIDENCE, MEASURES, Estimate, Summary, summarise
from loadtest.stats.objectives import Goodput, goodput
from loadtest.stats.records import RequestRecord
from loadtest.stats.warm_up_cut import Steady, ran

FORMAT = "quire-loadtest-1"
_INSTANT = 1e-9  # seconds: what takes no time has no rate that means anything


@dataclass(frozen=True, slots=True)
class Rates:
    """Per second of the ``seconds`` in which the steady part's requests ran, from the first sending
    to the last end. Tokens in are the server's count where it gives one."""

    seconds: float
    requests: float
    output_tokens: float
    input_tokens: float


@dataclass(slots=True)
class RunResult:
    """``records`` are all requests in the order they ended; summaries are of the steady part."""

    scenario: Mapping[str, Any]
    target: str
    date: str
    machine: str
    seconds: float
    records: list[RequestRecord]
    steady: Steady
    client: ClientLoad
    server: ServerSeries
    canary: CanaryReport | None
    objectives: Mapping[str, float]
    not_sent: int = 0
    refused: str | None = None  # what the server said to the first requests, all of them
    interrupted: bool = False
    closed_loop: bool = False
    summaries: dict[str, Summary] = field(default_factory=dict)
    rates: Rates = field(default_factory=lambda: Rates(0.0, 0.0, 0.0, 0.0))
    goodput: Goodput | None = None
    server_side: ServerSide | None = None

    def __post_init__(self) -> None:
        counted = self.counted
        self.summaries = {
            measure.name: summary
            for measure in MEASURES
            if (summary := summarise(measure, counted)) is not None
        }
        self.rates = _rates(self.records, self.steady)
        self.server_side = server_side(self.server)
        if self.objectives:
            self.goodput = goodput(counted, self.objectives, max(self.rates.seconds, _INSTANT))

    @property
    def counted(self) -> list[RequestRecord]:
        """Requests of the steady part that chaos left alone."""
        return [r for r in self.records if self.steady.holds(r) and r.kind == "normal"]

    @property
    def outcomes(self) -> Counter[str]:
        return Counter(record.outcome for record in self.records if record.kind == "normal")

    @property
    def failures(self) -> dict[str, str]:
        """What was said about the first of each outcome without a complete answer."""
        found: dict[str, str] = {}
        for record in self.records:
            if not record.ok and record.kind == "normal":
                found.setdefault(record.outcome, record.detail)
        return found

    @property
    def chaos(self) -> dict[str, Counter[str]]:
        """What became of the requests that misbehaved, by how they did."""
        found: dict[str, Counter[str]] = {}
        for record in self.records:
            if record.kind != "normal":
                found.setdefault(record.kind, Counter())[record.outcome] += 1
        return found

    @property
    def finish_reasons(self) -> Counter[str]:
        return Counter(r.finish_reason or "none" for r in self.records if r.ok)

    @property
    def miscounted(self) -> int:
        """Whole answers whose server counted fewer tokens than it sent events with text."""
        return sum(
            record.completion_tokens is not None
            and record.completion_tokens < record.events_with_text
            for record in self.records
            if record.ok
        )

    @property
    def complaints(self) -> list[str]:
        """What a reader must know before believing the figures."""
        found = []
        if self.refused is not None:
            found.append(f"the server refuses this scenario's requests: {self.refused}")
        elif self.records and not self.outcomes["ok"]:
            found.append("no request got a complete answer")
        if self.client.complaint:
            found.append(self.client.complaint)
        if self.not_sent:
            found.append(f"{self.not_sent} requests were due and not sent: too many in progress")
        if not self.steady.settled:
            found.append(f"no steady state: {self.steady.reason}")
        if self.interrupted:
            found.append("stopped before its end: what follows is of the part that ran")
        if self.miscounted:
            found.append(f"{self.miscounted} answers have more events with text than usage tokens")
        for gauge, (before, after) in self.server.not_back.items():
            found.append(f"{gauge} did not return: {before:g} before, {after:g} after")
        for outcome, count in self.chaos.get("malformed", {}).items():
            if outcome != "ok" and not outcome.startswith("http_4"):
                found.append(f"{count} malformed requests were not refused but ended: {outcome}")
        if self.canary is not None and (self.canary.changed or self.canary.failed):
            found.append(
                f"the canary's answer changed {len(self.canary.changed)} times and failed "
                f"{len(self.canary.failed)} times of {self.canary.asked}"
            )
        return found

    @property
    def is_good(self) -> bool:
        """Whether there were answers, and the objectives, the canary and the gauges held."""
        canary = self.canary is None or not (self.canary.changed or self.canary.failed)
        good = self.goodput is None or self.goodput.holds
        return bool(self.outcomes["ok"]) and good and canary and not self.server.not_back

    def as_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "date": self.date,
            "target": self.target,
            "machine": self.machine,
            "scenario": dict(self.scenario),
            "seconds": self.seconds,
            "interrupted": self.interrupted,
            "confidence": CONFIDENCE,
            "definitions": {measure.name: measure.definition for measure in MEASURES},
            "steady": asdict(self.steady),
            "measures": {name: asdict(summary) for name, summary in self.summaries.items()},
            "rates": asdict(self.rates),
            "objectives": dict(self.objectives),
            "goodput": None if self.goodput is None else asdict(self.goodput),
            "outcomes": dict(self.outcomes),
            "finish_reasons": dict(self.finish_reasons),
            "client": {**asdict(self.client), "complaint": self.client.complaint},
            "chaos": {kind: dict(outcomes) for kind, outcomes in self.chaos.items()},
            "not_sent": self.not_sent,
            "refused": self.refused,
            "failures": self.failures,
            "complaints": self.complaints,
            "canary": None if self.canary is None else asdict(self.canary),
            "server": asdict(self.server),
            "server_side": None if self.server_side is None else asdict(self.server_side),
            "closed_loop": self.closed_loop,
            "requests": [record.as_json() for record in self.records],
        }


def _rates(records: Sequence[RequestRecord], steady: Steady) -> Rates:
    """Work done while the steady part's requests ran, whoever asked for it before or within."""
    start, end = ran(records, steady)
    seconds = max(end - start, _INSTANT)
    ended = [r for r in records if r.ok and start <= r.ended <= end]
    out = 0.0
    for record in records:
        if record.token_times:
            per_event = record.output_tokens / record.events_with_text if record.ok else 1.0
            inside = sum(start <= time <= end for time in record.token_times)
            out += inside * per_event
    prompt = sum(record.prompt_tokens or 0 for record in ended)
    return Rates(end - start, len(ended) / seconds, out / seconds, prompt / seconds)


def save(result: RunResult, path: Path) -> None:
    """Written beside and moved over, so that a reader never meets half a file."""
    partial = path.with_suffix(path.suffix + ".part")
    partial.write_text(json.dumps(result.as_json(), indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def load(path: Path) -> dict[str, Any]:
    """A saved result. Raises ScenarioError for a file that is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ScenarioError(f"{path}: {error.strerror or error}") from None
    except ValueError as error:
        raise ScenarioError(f"{path}: not JSON: {error}") from None
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise ScenarioError(f"{path}: not a result of this program (format {FORMAT})")
    return value


def estimate(value: Mapping[str, float]) -> Estimate:
    """An Estimate as it stands in a result file."""
    return Estimate(value["value"], value["low"], value["high"])
