"""What the server's own readings say about a run: its queue, its prefix cache, its tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass

from loadtest.server.scrape import Reading, ServerSeries

QUEUE_DEFINITION = (
    "from a request's arrival in the server's queue to the first step that computes it, by the "
    "server's own histogram, to the precision of its buckets"
)
NOT_ITS_OWN = ("free", "other_processes")  # kinds of memory that the server does not hold
_SHARES = (0.5, 0.95, 0.99)


@dataclass(frozen=True, slots=True)
class QueueTime:
    """Seconds. ``bounds``: (share of the requests, the bound that so many keep, or None)."""

    count: int
    mean: float
    bounds: tuple[tuple[float, float | None], ...]


@dataclass(frozen=True, slots=True)
class ServerSide:
    """Differences between the first reading and the last; None for what the server does not tell.

    ``prefix_hits`` is the share of the prompt tokens asked for that the prefix cache had.
    """

    queue: QueueTime | None
    prefix_hits: float | None
    prompt_tokens: float | None
    generation_tokens: float | None
    preemptions: float | None


def server_side(series: ServerSeries) -> ServerSide | None:
    """None where there were not two readings."""
    if len(series.readings) < 2:
        return None
    first, last = series.readings[0], series.readings[-1]

    def grown(fact: str) -> float | None:
        if fact not in last.counters:
            return None
        return last.counters[fact] - first.counters.get(fact, 0.0)

    hits, queries = grown("prefix_hits"), grown("prefix_queries")
    return ServerSide(
        queue=_queue(first, last, grown("queue_seconds")),
        prefix_hits=hits / queries if hits is not None and queries else None,
        prompt_tokens=grown("prompt_tokens"),
        generation_tokens=grown("generation_tokens"),
        preemptions=grown("preemptions"),
    )


def _queue(first: Reading, last: Reading, seconds: float | None) -> QueueTime | None:
    counts = {bound: last.queue[bound] - first.queue.get(bound, 0.0) for bound in last.queue}
    count = max(counts.values(), default=0.0)
    if not count or seconds is None:
        return None
    ranked = sorted(counts.items())
    bounds = []
    for share in _SHARES:
        bound = next(bound for bound, within in ranked if within >= share * count)
        bounds.append((share, bound if math.isfinite(bound) else None))
    return QueueTime(round(count), seconds / count, tuple(bounds))
