"""Queries of the dashboards, written from the registry's metrics.

Every one of them asks for the targets that the dashboard's variables choose, and says how several
of them add up. Labels of the answer are those of ``by``.
"""

from __future__ import annotations

from server.metrics.spec import MetricSpec

TARGETS = 'job=~"$job", instance=~"$instance"'
SINCE = "$__rate_interval"


def select(name: str, **labels: str) -> str:
    """Series of the chosen targets. A value with ``~`` before it is a regular expression."""
    matchers = [TARGETS]
    for label, value in labels.items():
        operator = "=~" if value.startswith("~") else "="
        matchers.append(f'{label}{operator}"{value.removeprefix("~")}"')
    return f"{name}{{{', '.join(matchers)}}}"


def total(metric: MetricSpec, *by: str, **labels: str) -> str:
    """A gauge of amounts, added up over the targets."""
    return f"sum{_by(by)} ({select(metric.name, **labels)})"


def highest(metric: MetricSpec, *by: str, **labels: str) -> str:
    """A gauge that does not add up, such as a share or an age: the worst of the targets."""
    return f"max{_by(by)} ({select(metric.name, **labels)})"


def lowest(metric: MetricSpec, *by: str, **labels: str) -> str:
    return f"min{_by(by)} ({select(metric.name, **labels)})"


def rate(metric: MetricSpec, *by: str, part: str = "", **labels: str) -> str:
    """A counter's rise in a second; ``part`` is a histogram's "_sum" or "_count"."""
    return f"sum{_by(by)} (rate({select(metric.name + part, **labels)}[{SINCE}]))"


def rise(metric: MetricSpec, over: str, *by: str, **labels: str) -> str:
    """By how much a counter rose in the time ``over``."""
    return f"sum{_by(by)} (increase({select(metric.name, **labels)}[{over}]))"


def quantile(share: float, metric: MetricSpec, *by: str) -> str:
    """Of a histogram over all targets: their buckets are added up first."""
    buckets = rate(metric, "le", *by, part="_bucket")
    return f"histogram_quantile({share}, {buckets})"


def mean(metric: MetricSpec, *by: str) -> str:
    """Of a histogram's observations."""
    return f"{rate(metric, *by, part='_sum')} / {rate(metric, *by, part='_count')}"


def _by(labels: tuple[str, ...]) -> str:
    return f" by ({', '.join(labels)})" if labels else ""
