"""Every name that a query may ask for: the registry's series, recorded ones, and Prometheus's own.

A name stands for an amount of something (``Quantity``), carries labels, and has a form that says
what has to be done to it before it can be shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from server.metrics.registry import METRICS
from server.metrics.spec import MetricSpec, MetricType, Unit

TARGET_LABELS = ("job", "instance")  # Prometheus puts them on everything that it scrapes


class Form(StrEnum):
    VALUE = "value"  # can be shown as it is
    COUNTER = "counter"  # rises for ever: rate() or increase() first
    BUCKETS = "buckets"  # a histogram's counters by upper bound
    BUCKET_RATES = "rates of buckets"  # for histogram_quantile


@dataclass(frozen=True, slots=True)
class Quantity:
    """``unit`` None: a plain number."""

    unit: Unit | None
    per_second: bool = False

    def __str__(self) -> str:
        return f"{self.unit or 'number'}{' per second' if self.per_second else ''}"


NUMBER = Quantity(None)


@dataclass(frozen=True, slots=True)
class Series:
    """``labels`` map a name to all values that it can have; None: they are not known here."""

    form: Form
    quantity: Quantity
    labels: Mapping[str, tuple[str, ...] | None]


Catalogue = Mapping[str, Series]


def metric_catalogue() -> dict[str, Series]:
    """What a scrape of Quire gives, and ``up``."""
    names = {name: series for metric in METRICS for name, series in _series(metric).items()}
    return {**names, "up": Series(Form.VALUE, Quantity(Unit.FLAG), dict.fromkeys(TARGET_LABELS))}


def _series(metric: MetricSpec) -> dict[str, Series]:
    labels: dict[str, tuple[str, ...] | None] = dict.fromkeys(TARGET_LABELS)
    labels.update((label.name, label.values) for label in metric.labels)
    match metric.type:
        case MetricType.GAUGE:
            return {metric.name: Series(Form.VALUE, Quantity(metric.unit), labels)}
        case MetricType.COUNTER:
            return {metric.name: Series(Form.COUNTER, Quantity(metric.unit), labels)}
    events = Quantity(Unit.EVENTS)
    return {
        f"{metric.name}_bucket": Series(
            Form.BUCKETS, Quantity(metric.unit), {**labels, "le": None}
        ),
        f"{metric.name}_sum": Series(Form.COUNTER, Quantity(metric.unit), labels),
        f"{metric.name}_count": Series(Form.COUNTER, events, labels),
    }
