"""When requests are due. Open arrivals do not wait for answers; a closed loop does.

An open schedule is an iterator of seconds from the start, rising. Its randomness is its own
generator, so that the same seed gives the same times whatever else is drawn.

    constant   every 1/rate seconds
    poisson    gaps exponential: users who know nothing of each other
    gamma      gaps of the same mean, shape = 1/cv^2: cv > 1 comes in bursts, cv < 1 is smoother
    ramp       a Poisson process whose rate rises linearly (by inversion of its cumulative rate)
    trace      the times of a recording
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol


class Arrivals(Protocol):
    def times(self, seed: int) -> Iterator[float]:
        """Seconds from the start at which a request is due, rising; it may never end."""
        ...

    def describe(self) -> str:
        """For the head of a report."""
        ...


@dataclass(frozen=True, slots=True)
class ClosedLoop:
    """``concurrency`` users, each of whom sends the next request when its last has ended.

    It is not a schedule: a slow server is asked less often, so that its worst moments are
    under-represented (coordinated omission). Reports say so.
    """

    concurrency: int

    def describe(self) -> str:
        return f"closed loop of {self.concurrency}"


def load_of(arrivals: Arrivals | ClosedLoop) -> tuple[float, str] | None:
    """How much is asked, and in what; None where that changes within a run."""
    match arrivals:
        case ClosedLoop(concurrency=users):
            return float(users), "requests at once"
        case Constant(rate=rate) | Poisson(rate=rate) | Gamma(rate=rate):
            return rate, "requests/s asked for"
    return None


@dataclass(frozen=True, slots=True)
class Constant:
    rate: float  # requests a second

    def times(self, seed: int) -> Iterator[float]:
        number = 0
        while True:
            yield number / self.rate
            number += 1

    def describe(self) -> str:
        return f"constant, {self.rate:g} requests/s"


@dataclass(frozen=True, slots=True)
class Poisson:
    rate: float

    def times(self, seed: int) -> Iterator[float]:
        draw, now = random.Random(seed), 0.0
        while True:
            now += draw.expovariate(self.rate)
            yield now

    def describe(self) -> str:
        return f"Poisson, {self.rate:g} requests/s"


@dataclass(frozen=True, slots=True)
class Gamma:
    """``cv`` is the gaps' coefficient of variation; 1 is Poisson."""

    rate: float
    cv: float

    def times(self, seed: int) -> Iterator[float]:
        draw, now = random.Random(seed), 0.0
        shape = self.cv**-2
        scale = 1.0 / (self.rate * shape)
        while True:
            now += draw.gammavariate(shape, scale)
            yield now

    def describe(self) -> str:
        return f"gamma, {self.rate:g} requests/s, coefficient of variation {self.cv:g}"


@dataclass(frozen=True, slots=True)
class Ramp:
    """From ``start`` to ``end`` requests a second within ``seconds``, and there it stays."""

    start: float
    end: float
    seconds: float

    def times(self, seed: int) -> Iterator[float]:
        draw, arrived = random.Random(seed), 0.0
        while True:
            arrived += draw.expovariate(1.0)
            yield self._when(arrived)

    def _when(self, arrived: float) -> float:
        """The time by which ``arrived`` requests are due: start t + slope t^2 / 2, inverted."""
        slope = (self.end - self.start) / self.seconds
        in_ramp = (self.start + self.end) / 2 * self.seconds
        if arrived >= in_ramp:
            return self.seconds + (arrived - in_ramp) / self.end
        if slope == 0:
            return arrived / self.start
        # The root that is 0 where arrived is 0, in the form that loses no digits.
        root = math.sqrt(self.start**2 + 2 * slope * arrived)
        return 2 * arrived / (self.start + root)

    def describe(self) -> str:
        return f"Poisson, from {self.start:g} to {self.end:g} requests/s within {self.seconds:g} s"


@dataclass(frozen=True, slots=True)
class Recorded:
    """A trace's times, from its first request, divided by ``speed``."""

    seconds: tuple[float, ...]
    speed: float = 1.0

    def times(self, seed: int) -> Iterator[float]:
        first = self.seconds[0] if self.seconds else 0.0
        for second in self.seconds:
            yield (second - first) / self.speed

    def describe(self) -> str:
        faster = "" if self.speed == 1 else f" at {self.speed:g} times its speed"
        return f"trace of {len(self.seconds)} requests{faster}"
