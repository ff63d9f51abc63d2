"""Arrivals have the distributions that they are named for."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest

from loadtest.workload.arrivals import Arrivals, Constant, Gamma, Poisson, Ramp, Recorded

COUNT = 4000
# Kolmogorov: at 1 in 1000, for many values, sqrt(n) times the distance stays below this.
BOUND = 1.95 / math.sqrt(COUNT)


def gaps(arrivals: Arrivals, seed: int = 5) -> np.ndarray:
    times = list(itertools.islice(arrivals.times(seed), COUNT))
    return np.diff([0.0, *times])


def distance(values: np.ndarray, share_below: Callable[[np.ndarray], np.ndarray]) -> float:
    """Kolmogorov's: the largest difference between the values' shares and the law's."""
    ranked = np.sort(values)
    law = share_below(ranked)
    steps = np.arange(ranked.size + 1) / ranked.size
    return float(max(np.abs(law - steps[1:]).max(), np.abs(law - steps[:-1]).max()))


def gamma_law(shape: float, scale: float) -> Callable[[np.ndarray], np.ndarray]:
    """The share below, by the series of the incomplete gamma function."""

    def share(x: float) -> float:
        if x <= 0:
            return 0.0
        term = total = 1.0 / shape
        for number in range(1, 500):
            term *= x / (shape + number)
            total += term
        return total * math.exp(-x + shape * math.log(x) - math.lgamma(shape))

    return lambda values: np.array([min(1.0, share(value / scale)) for value in values])


@pytest.mark.parametrize("rate", [0.5, 40.0])
def test_poisson_gaps_are_exponential(rate: float) -> None:
    assert distance(gaps(Poisson(rate)), lambda x: 1 - np.exp(-rate * x)) < BOUND


@pytest.mark.parametrize("cv", [0.5, 1.0, 2.0])
def test_gamma_gaps_have_their_law(cv: float) -> None:
    rate, shape = 8.0, cv**-2
    values = gaps(Gamma(rate, cv))
    assert distance(values, gamma_law(shape, 1 / (rate * shape))) < BOUND
    assert values.std() / values.mean() == pytest.approx(cv, rel=0.1)


def test_a_wrong_law_is_told_apart() -> None:
    assert distance(gaps(Gamma(8.0, 2.0)), lambda x: 1 - np.exp(-8.0 * x)) > BOUND
    assert distance(gaps(Poisson(8.0)), lambda x: 1 - np.exp(-9.0 * x)) > BOUND


def test_consecutive_gaps_know_nothing_of_each_other() -> None:
    values = gaps(Poisson(3.0))
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 3 / math.sqrt(COUNT)


def test_constant_arrivals_do_not_drift() -> None:
    times = list(itertools.islice(Constant(7.0).times(0), 70_001))
    assert times[70_000] == 10_000.0


@pytest.mark.parametrize(("start", "end"), [(2.0, 20.0), (20.0, 2.0), (5.0, 5.0)])
def test_a_ramp_has_its_rate_at_every_time(start: float, end: float) -> None:
    """The cumulative rate makes a ramp's times a Poisson process of rate 1."""
    ramp = Ramp(start, end, 60.0)

    def cumulative(t: float) -> float:
        inside = min(t, 60.0)
        return start * inside + (end - start) * inside**2 / 120.0 + end * max(0.0, t - 60.0)

    times = itertools.islice(ramp.times(11), COUNT)
    values = np.diff([0.0, *(cumulative(t) for t in times)])
    assert distance(values, lambda x: 1 - np.exp(-x)) < BOUND


@pytest.mark.parametrize("arrivals", [Poisson(3.0), Gamma(3.0, 2.0), Ramp(1.0, 9.0, 5.0)])
def test_a_seed_gives_the_same_times_and_another_others(arrivals: Arrivals) -> None:
    def first(seed: int) -> list[float]:
        return list(itertools.islice(arrivals.times(seed), 50))

    assert first(1) == first(1) != first(2)
    assert first(1) == sorted(first(1))


def test_a_recording_begins_at_0_and_goes_as_fast_as_asked() -> None:
    assert list(Recorded((100.0, 101.0, 104.0), 2.0).times(0)) == [0.0, 0.5, 2.0]
