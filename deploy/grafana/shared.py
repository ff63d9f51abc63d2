"""Panels that more than one dashboard has, and the panel of a histogram."""

from __future__ import annotations

from deploy.grafana.panels import Graph, Query, Stat
from deploy.grafana.queries import highest, quantile, rate
from server.metrics import registry as r
from server.metrics.spec import MetricSpec

_SHARES = ((0.5, "half of them"), (0.95, "95 of 100"), (0.99, "99 of 100"))
_FULL = ((0.75, "yellow"), (0.9, "red"))  # 0.9 is where the rules alarm

KV_IN_USE = Stat(
    "KV cache in use",
    "Blocks that running requests hold, of all blocks; of several servers the fullest. "
    "Above 90 % new requests wait and running ones may be preempted.",
    "percentunit",
    (Query(highest(r.KV_USAGE)),),
    thresholds=_FULL,
)
BLOCKS_IN_USE = Graph(
    "Blocks in use",
    "Blocks that running requests hold, of all blocks, for each server. The dashed line is "
    "where the alarm is, at 90 %.",
    "percentunit",
    (Query(highest(r.KV_USAGE, "instance"), "{{instance}}"),),
    thresholds=_FULL,
    ratio=True,
)
THROWN_AWAY = Graph(
    "Tokens thrown away",
    "Tokens that were computed for an answer that had ended: by a stop string that is "
    "found in text, or by a client that left.",
    "suffix: tokens/s",
    (Query(rate(r.DISCARDED_TOKENS), "thrown away"),),
)


def distribution(title: str, description: str, metric: MetricSpec, unit: str = "s") -> Graph:
    """What half, 95 and 99 of 100 observations stay below."""
    queries = tuple(Query(quantile(share, metric), name) for share, name in _SHARES)
    return Graph(title, description, unit, queries)
