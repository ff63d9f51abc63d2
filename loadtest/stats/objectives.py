"""Goodput: requests a second that met every objective, and whether enough of them did.

An objective is a bound in seconds on a measure of one request; a measure with many values (ITL)
meets it when all of them do. A request without a whole answer is never good. The share of good
requests has a Wilson interval (Wilson 1927), which is sound for few requests and for shares near 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loadtest.stats.measures import MEASURES, Estimate
from loadtest.stats.records import RequestRecord

WANTED_SHARE = 0.95
_Z = 1.959963984540054  # two-sided 95 %


@dataclass(frozen=True, slots=True)
class Goodput:
    """``rate`` is good requests a second, ``share`` the good ones of all."""

    rate: float
    share: Estimate
    count: int
    missed: dict[str, int]  # by objective; "failed" where there was no complete answer

    @property
    def holds(self) -> bool:
        """Whether at least WANTED_SHARE of the requests were good."""
        return self.share.value >= WANTED_SHARE


def goodput(
    records: Sequence[RequestRecord], objectives: Mapping[str, float], seconds: float
) -> Goodput:
    """Of requests sent within ``seconds``."""
    missed = dict.fromkeys((*objectives, "failed"), 0)
    good = 0
    for record in records:
        names = misses(record, objectives)
        for name in names:
            missed[name] += 1
        good += not names
    return Goodput(good / seconds, wilson(good, len(records)), len(records), missed)


def misses(record: RequestRecord, objectives: Mapping[str, float]) -> list[str]:
    """The objectives that a request missed."""
    if not record.ok:
        return ["failed"]
    measures = {measure.name: measure for measure in MEASURES}
    return [
        name
        for name, bound in objectives.items()
        if any(value > bound for value in measures[name].values(record))
    ]


def wilson(good: int, count: int) -> Estimate:
    """A share and its 95 % interval; 0 of 0 says nothing: 0 to 1."""
    if count == 0:
        return Estimate(0.0, 0.0, 1.0)
    share = good / count
    spread = _Z * math.sqrt(share * (1 - share) / count + (_Z / (2 * count)) ** 2)
    middle, scale = share + _Z**2 / (2 * count), 1 + _Z**2 / count
    return Estimate(share, max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale))
