"""A row of the benchmark: what must be done, who does it, and what it comes to.

What must be done is counted once, whatever a kernel really moves: every input read once, every
output written once, and the operations of the formula (two for a multiplication with an addition),
of attention only those that the mask leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from statistics import median, quantiles

import torch

Call = Callable[[], object]


class Limit(Enum):
    """What a row could at best be limited by, measured in the same run."""

    COPY = "copy"  # bytes a second of a large device-to-device copy, read and written
    PRODUCT = "product"  # operations a second of a large bfloat16 matrix product


@dataclass(frozen=True, slots=True)
class Limits:
    copy: float  # bytes a second
    product: float  # operations a second


@dataclass(frozen=True, slots=True)
class Goal:
    """What a row is built to reach: microseconds at most, or a fraction of the limit at least."""

    microseconds: float | None = None
    fraction: float | None = None

    def __str__(self) -> str:
        if self.microseconds is not None:
            return f"<= {self.microseconds:g} us"
        return "" if self.fraction is None else f">= {self.fraction:.0%}"


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to do a row's work.

    ``make(device, sets)`` allocates so many sets of inputs and returns a call for each, so that a
    set has left the caches when its turn comes again. ``captured`` says whether a call may be
    captured in a CUDA graph. Raises NotImplementedError where the device or its packages cannot.
    """

    name: str
    make: Callable[[torch.device, int], Sequence[Call]]
    captured: bool = True

    @property
    def own(self) -> bool:
        return self.name.startswith("quire")


@dataclass(frozen=True, slots=True)
class Row:
    number: int
    name: str
    nbytes: int
    operations: int
    limit: Limit
    goal: Goal
    contenders: tuple[Contender, ...]  # the project's own first

    def floor(self, limits: Limits) -> float:
        """Seconds that the work takes at the limit."""
        if self.limit is Limit.COPY:
            return self.nbytes / limits.copy
        return self.operations / limits.product


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one contender came to, in the order that it is printed in."""

    row: int
    name: str
    contender: str
    microseconds: float  # median
    low: float  # the 10th of 100 parts of the samples, in microseconds
    high: float  # the 90th
    samples: int
    gigabytes_per_second: float
    teraflops_per_second: float
    fraction: float  # of the row's limit
    limit: str
    goal: str
    reached: bool | None  # None for other projects' kernels and for rows without a goal
    cold: bool  # whether inputs had left the caches


def outcome_of(
    row: Row, contender: str, samples: Sequence[float], limits: Limits, cold: bool
) -> Outcome:
    """``samples`` are microseconds of a call."""
    middle = median(samples)
    low, high = spread(samples)
    seconds = middle * 1e-6
    fraction = row.floor(limits) / seconds
    return Outcome(
        row=row.number,
        name=row.name,
        contender=contender,
        microseconds=middle,
        low=low,
        high=high,
        samples=len(samples),
        gigabytes_per_second=row.nbytes / seconds / 1e9,
        teraflops_per_second=row.operations / seconds / 1e12,
        fraction=fraction,
        limit=row.limit.value,
        goal=str(row.goal),
        reached=_reached(row, contender, middle, fraction),
        cold=cold,
    )


def _reached(row: Row, contender: str, microseconds: float, fraction: float) -> bool | None:
    if contender != row.contenders[0].name:
        return None
    if row.goal.microseconds is not None:
        return microseconds <= row.goal.microseconds
    return None if row.goal.fraction is None else fraction >= row.goal.fraction


def spread(samples: Sequence[float]) -> tuple[float, float]:
    """The 10th and the 90th percentile."""
    if len(samples) < 2:
        return samples[0], samples[0]
    tenths = quantiles(samples, n=10, method="inclusive")
    return tenths[0], tenths[-1]
