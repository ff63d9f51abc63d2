"""The measures, each with its definition in words, and percentiles with intervals.

A definition is printed with the figures: tools disagree on what TPOT is, and a number without its
meaning cannot be compared. Intervals come from a bootstrap over requests (Efron 1979): the tokens
of one request share its luck, so whole requests are drawn, not single gaps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from loadtest.stats.records import RequestRecord

Floats = NDArray[np.float64]
RESAMPLES = 400
CONFIDENCE = 0.95
PERCENTILES = (50.0, 90.0, 95.0, 99.0)
_WEIGHTS_AT_ONCE = 2**20  # 8 MiB of them, as many draws at a time as that holds


@dataclass(frozen=True, slots=True)
class Measure:
    """``values`` gives a request's values in seconds: none, one, or one for each gap."""

    name: str
    title: str
    definition: str
    values: Callable[[RequestRecord], Sequence[float]]


def _ttft(record: RequestRecord) -> Sequence[float]:
    return () if record.first_token is None else (record.first_token - record.sent,)


def _ttft_intended(record: RequestRecord) -> Sequence[float]:
    return () if record.first_token is None else (record.first_token - record.intended,)


def _gaps(record: RequestRecord) -> Sequence[float]:
    times = record.token_times
    return [later - earlier for earlier, later in pairwise(times)]


def _tpot(record: RequestRecord) -> Sequence[float]:
    later = record.tokens_after_first_event
    if record.events_with_text < 2 or later <= 0:
        return ()
    return ((record.token_times[-1] - record.token_times[0]) / later,)


MEASURES: tuple[Measure, ...] = (
    Measure(
        "ttft",
        "TTFT",
        "from the request's sending, on a connection that stands, to the first event with text",
        _ttft,
    ),
    Measure(
        "ttft_intended",
        "TTFT, intended",
        "from the moment the schedule wanted it sent to the first event with text: a client or a "
        "server that falls behind shows here and not above",
        _ttft_intended,
    ),
    Measure(
        "itl",
        "ITL",
        "between two events with text of one answer, every gap counted",
        _gaps,
    ),
    Measure(
        "tpot",
        "TPOT",
        "one answer's mean after its first event with text: (last event with text - first) / "
        "(output tokens - those of the first event); where the server does not count those, as "
        "many as its events hold on average",
        _tpot,
    ),
    Measure(
        "e2e",
        "E2E",
        "from the request's sending to the answer's last byte",
        lambda record: (record.ended - record.sent,),
    ),
    Measure(
        "e2e_intended",
        "E2E, intended",
        "from the moment the schedule wanted it sent to the answer's last byte",
        lambda record: (record.ended - record.intended,),
    ),
    Measure(
        "client_delay",
        "client delay",
        "from the moment the schedule wanted it sent to the moment it was: this client's own queue",
        lambda record: (record.sent - record.intended,),
    ),
)


_OF_A_SCHEDULE = ("ttft_intended", "e2e_intended", "client_delay")


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and the interval that holds the true one with CONFIDENCE."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Summary:
    """A measure over a run's requests. Seconds."""

    name: str
    count: int
    mean: float
    most: float
    percentiles: dict[float, Estimate]


def shown(closed_loop: bool) -> tuple[Measure, ...]:
    """Without a schedule no moment was intended: those measures would repeat the others."""
    return tuple(
        measure for measure in MEASURES if not (closed_loop and measure.name in _OF_A_SCHEDULE)
    )


def summarise(measure: Measure, records: Iterable[RequestRecord], seed: int = 0) -> Summary | None:
    """The measure over all whole answers; None where there is no value."""
    by_request = [measure.values(record) for record in records if record.ok]
    values = np.array([value for values in by_request for value in values], np.float64)
    if not values.size:
        return None
    owners = np.repeat(np.arange(len(by_request)), [len(values) for values in by_request])
    bounds = percentile_intervals(values, owners, PERCENTILES, seed=seed)
    return Summary(
        name=measure.name,
        count=values.size,
        mean=float(values.mean()),
        most=float(values.max()),
        percentiles=dict(zip(PERCENTILES, bounds, strict=True)),
    )


def percentile_intervals(
    values: Floats, owners: NDArray[np.int64], percentiles: Sequence[float], *, seed: int
) -> list[Estimate]:
    """Percentiles of ``values`` [n] and their intervals, drawing whole owners [n] anew.

    A percentile is the smallest value that at least so many per cent do not exceed. One sort
    serves all draws: a draw is a weight for each owner.
    """
    names, owner_of = np.unique(owners, return_inverse=True)
    wanted = np.array(percentiles) / 100.0
    point, found = percentiles_drawn_anew(
        values, owner_of, names.size, wanted, draws=RESAMPLES, seed=seed
    )
    edges = (1 - CONFIDENCE) / 2 * 100
    low, high = np.percentile(found, (edges, 100 - edges), axis=0)
    return [
        Estimate(float(value), float(below), float(above))
        for value, below, above in zip(point, low, high, strict=True)
    ]


def percentiles_drawn_anew(
    values: Floats,
    owners: NDArray[np.int64],
    num_owners: int,
    shares: Floats,
    *,
    draws: int,
    seed: int,
) -> tuple[Floats, Floats]:
    """The percentiles [shares] of ``values`` [n], and those of each draw [draws, shares].

    ``owners`` [n] are below ``num_owners``. A draw takes so many of them, with replacement.
    """
    order = np.argsort(values, kind="stable")
    ranked, owner_of = values[order], owners[order]
    generator = np.random.default_rng(seed)
    found = np.empty((draws, shares.size))
    at_once = max(1, _WEIGHTS_AT_ONCE // max(ranked.size, num_owners))
    for first in range(0, draws, at_once):
        rows = min(at_once, draws - first)
        drawn = generator.integers(0, num_owners, (rows, num_owners))
        drawn += num_owners * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * num_owners).reshape(rows, num_owners)
        found[first : first + rows] = _weighted_percentiles(ranked, counts[:, owner_of], shares)
    (point,) = _weighted_percentiles(ranked, np.ones((1, ranked.size), np.int64), shares)
    return point, found


def _weighted_percentiles(ranked: Floats, weights: NDArray[np.int64], shares: Floats) -> Floats:
    """[draws, shares]: the smallest of ``ranked`` [n] whose ``weights`` [draws, n] up to it reach
    each share of all weights."""
    reached = np.cumsum(weights, axis=1)
    wanted = np.ceil(np.multiply.outer(reached[:, -1], shares) - 1e-9)
    places = np.stack(
        [np.count_nonzero(reached < column[:, None], axis=1) for column in wanted.T], axis=1
    )
    found: Floats = ranked[np.minimum(places, ranked.size - 1)]
    return found
