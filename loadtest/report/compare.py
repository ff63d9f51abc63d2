"""Two results side by side: faster, slower or not different, with an interval of the ratio.

Failures come first. A server that turns most requests away is quick with the rest, so where the
shares of failed requests differ, no figure of the others is judged: ``Failures.comparable``.

The ratio of a percentile is bootstrapped: both runs' requests are drawn anew, and the ratio of the
drawn percentiles is taken, many times. Where its interval holds 1, the runs are not different as
far as they can tell. Many figures are compared, so each interval is widened until all of them hold
together with 95 % (Bonferroni): two runs of one server seldom differ in any. Runs of one machine
should be interleaved (A, B, A, B, ...): all files of a side are then put together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from loadtest.stats.measures import (
    CONFIDENCE,
    MEASURES,
    Estimate,
    Floats,
    percentiles_drawn_anew,
)
from loadtest.stats.objectives import wilson
from loadtest.stats.records import RequestRecord
from loadtest.stats.warm_up_cut import Steady, ran

COMPARED = (50.0, 95.0)
DRAWS = 2000  # enough to see the far tails that many comparisons ask for
_RATE_SLICES = 20
NEGLIGIBLE = 0.01  # of the requests: no percentile that is compared moves for so few


@dataclass(frozen=True, slots=True)
class Difference:
    """``ratio`` is b / a. ``lower_is_better`` says which way faster lies."""

    name: str
    a: float
    b: float
    ratio: Estimate
    lower_is_better: bool

    @property
    def verdict(self) -> str:
        """For b: faster, slower, or not different."""
        if self.ratio.low <= 1.0 <= self.ratio.high:
            return "not different"
        return "faster" if (self.ratio.value < 1.0) == self.lower_is_better else "slower"


@dataclass(frozen=True, slots=True)
class Failures:
    """Requests of the steady parts, chaos aside, and how many of them got no complete answer."""

    failed: tuple[int, int]
    asked: tuple[int, int]

    @property
    def difference(self) -> Estimate:
        """Of the shares that failed, b's less a's, by Newcombe's interval (1998, method 10)."""
        a, b = (
            wilson(failed, asked) for failed, asked in zip(self.failed, self.asked, strict=True)
        )
        value = b.value - a.value
        low = math.hypot(b.value - b.low, a.high - a.value)
        high = math.hypot(b.high - b.value, a.value - a.low)
        return Estimate(value, value - low, value + high)

    @property
    def verdict(self) -> str:
        """For b: fails more, fails less, or not different."""
        difference = self.difference
        if difference.low <= 0.0 <= difference.high:
            return "not different"
        return "fails more" if difference.value > 0 else "fails less"

    @property
    def comparable(self) -> bool:
        """Whether about as many requests succeeded on both sides, so that the rest may be judged:
        the shares do not differ, or by so little that hardly another request was answered."""
        return self.verdict == "not different" or abs(self.difference.value) <= NEGLIGIBLE


def failures(a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]]) -> Failures:
    """Of two sides, each of one or more loaded results."""
    asked = [_records(side, whole=False) for side in (a, b)]
    failed = [sum(not record.ok for record in side) for side in asked]
    return Failures((failed[0], failed[1]), (len(asked[0]), len(asked[1])))


def compare(a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]]) -> list[Difference]:
    """Differences between two sides, each of one or more loaded results."""
    sides = [_records(side) for side in (a, b)]
    values = {
        measure.title: [[list(measure.values(record)) for record in side] for side in sides]
        for measure in MEASURES
        if measure.name != "client_delay"  # ours, and no server's
    }
    values = {name: pair for name, pair in values.items() if all(any(side) for side in pair)}
    rates = [_token_rates(side) for side in (a, b)]
    has_rates = all(rate.size for rate in rates)
    tail = (1 - CONFIDENCE) / max(1, len(values) * len(COMPARED) + has_rates) / 2
    found = []
    for name, (of_a, of_b) in values.items():
        ratios = _percentile_ratios(of_a, of_b, tail)
        for percentile, estimates in zip(COMPARED, ratios, strict=True):
            found.append(Difference(f"{name} p{percentile:g}", *estimates, True))
    if has_rates:
        found.append(Difference("output tokens/s", *_mean_ratio(rates[0], rates[1], tail), False))
    return found


def _records(results: Sequence[Mapping[str, Any]], *, whole: bool = True) -> list[RequestRecord]:
    """Whole answers of the steady parts, or all that was asked there."""
    found = []
    for result in results:
        start, end = result["steady"]["start"], result["steady"]["end"]
        for fields in result["requests"]:
            record = _record(fields)
            counts = record.ok or not whole
            if counts and record.kind == "normal" and start <= record.sent <= end:
                found.append(record)
    return found


def _record(fields: Mapping[str, Any]) -> RequestRecord:
    return RequestRecord(**{**fields, "token_times": tuple(fields["token_times"])})


def _percentile_ratios(
    a: list[list[float]], b: list[list[float]], tail: float
) -> list[tuple[float, float, Estimate]]:
    """Of each percentile that is compared: a's, b's, and their ratio."""
    shares = np.array(COMPARED) / 100.0
    points, draws = [], []
    for side, seed in ((a, 1), (b, 2)):
        values = np.array([value for values in side for value in values])
        owners = np.repeat(np.arange(len(side)), [len(values) for values in side])
        point, drawn = percentiles_drawn_anew(
            values, owners, len(side), shares, draws=DRAWS, seed=seed
        )
        points.append(point)
        draws.append(drawn)
    return [
        (float(of_a), float(of_b), _ratio(float(of_a), float(of_b), drawn, tail))
        for of_a, of_b, drawn in zip(*points, (draws[1] / draws[0]).T, strict=True)
    ]


def _token_rates(results: Sequence[Mapping[str, Any]]) -> Floats:
    """Output tokens a second in equal slices of the time in which the steady parts ran."""
    found: list[float] = []
    for result in results:
        steady = Steady(result["steady"]["start"], result["steady"]["end"], True, "")
        start, end = ran([_record(fields) for fields in result["requests"]], steady)
        times = [time for fields in result["requests"] for time in fields["token_times"]]
        if end > start and times:
            counts, _ = np.histogram(times, bins=_RATE_SLICES, range=(start, end))
            found += list(counts / ((end - start) / _RATE_SLICES))
    return np.array(found)


def _mean_ratio(a: Floats, b: Floats, tail: float) -> tuple[float, float, Estimate]:
    generator = np.random.default_rng(3)
    drawn = [
        side[generator.integers(0, side.size, (DRAWS, side.size))].mean(axis=1) for side in (a, b)
    ]
    point = float(a.mean()), float(b.mean())
    return *point, _ratio(*point, drawn[1] / np.maximum(drawn[0], 1e-12), tail)


def _ratio(a: float, b: float, drawn: Floats, tail: float) -> Estimate:
    low, high = np.percentile(drawn, (tail * 100, 100 - tail * 100))
    return Estimate(b / a if a else float("inf"), float(low), float(high))
