"""What a metric is, as data: its name, type, unit and labels.

Names follow Prometheus's conventions: base units, ``_total`` for counters, ``_ratio`` for shares of
1, ``_info`` for facts that stand in labels beside a value of 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum


class MetricType(StrEnum):
    COUNTER = "counter"  # only rises, until its process starts anew: read it through rate()
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Unit(StrEnum):
    """What one is of. Counts of things are named after the thing, so that a graph can say it."""

    BYTES = "bytes"
    SECONDS = "seconds"
    RATIO = "ratio"  # 0 to 1
    TOKENS = "tokens"
    REQUESTS = "requests"
    SEQUENCES = "sequences"
    BLOCKS = "blocks"
    STEPS = "steps"
    EVENTS = "events"
    FLAG = "flag"  # 0 or 1


@dataclass(frozen=True, slots=True)
class Label:
    """``values`` are all that it can have; None: they depend on the model or the machine. Those
    that depend on the backends there are come as a function."""

    name: str
    known: tuple[str, ...] | Callable[[], tuple[str, ...]] | None = None

    @property
    def values(self) -> tuple[str, ...] | None:
        return self.known() if callable(self.known) else self.known


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """One metric. ``buckets`` are a histogram's upper bounds, in its unit.

    Raises:
        ValueError: the name does not say the type, or buckets do not belong to it.
    """

    name: str
    type: MetricType
    help: str
    unit: Unit
    labels: tuple[Label, ...] = ()
    buckets: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.name.endswith("_total") != (self.type is MetricType.COUNTER):
            raise ValueError(f"{self.name} is a {self.type}: _total is the end of counters' names")
        if bool(self.buckets) != (self.type is MetricType.HISTOGRAM):
            raise ValueError(f"{self.name} is a {self.type}: buckets belong to histograms")

    @property
    def label_names(self) -> tuple[str, ...]:
        return tuple(label.name for label in self.labels)

    @property
    def series_names(self) -> tuple[str, ...]:
        """The names that a query can select."""
        if self.type is MetricType.HISTOGRAM:
            return tuple(f"{self.name}_{part}" for part in ("bucket", "sum", "count"))
        return (self.name,)
