"""What is counted, as plain data. The exporter (server.metrics.prometheus) comes second.

The HTTP layer reports requests through ``RequestMetrics``; the engine client reports steps through
``StepMetrics``. Neither knows what becomes of the figures. Standard library only.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from server.engine.events import StepStats
from server.logs import log_fields


class Outcome(StrEnum):
    """How a request ended: exactly one for every request, refused ones included."""

    STOP = "stop"  # every choice ended by itself or by a stop sequence
    LENGTH = "length"  # at least one choice met its token limit
    ABORT = "abort"  # the client went away
    INVALID = "invalid"  # a 4xx: the request could not be served as it was sent
    OVERLOADED = "overloaded"  # 429, or 503 by the queue's deadline, draining or connections
    ERROR = "error"  # a 5xx: the server's own fault


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One finished request of a route that generates. Times in seconds.

    ``route`` is the route's template, never the raw path. ``client_request_id`` is the client's own
    label. ``queue_s`` is the engine's wait before a prompt was first scheduled (the longest of
    several), ``ttft_s`` runs from the arrival to the first token, ``tpot_s`` is the mean time of
    each later token; each is None where the request did not get that far. Token counts are over all
    prompts and choices.
    """

    request_id: str
    route: str
    outcome: Outcome
    status: int
    stream: bool = False
    num_choices: int = 1
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    queue_s: float | None = None
    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float = 0.0
    finish_reasons: tuple[str, ...] = ()
    error_code: str | None = None
    error_param: str | None = None  # the field at fault, where its name is one
    client_request_id: str | None = None


class RequestMetrics(Protocol):
    """What the HTTP layer reports. No method blocks or raises."""

    def observe_finish(self, record: RequestRecord) -> None:
        """Called exactly once for every request of a route that generates."""
        ...

    def observe_prompt(self, count: int) -> None:
        """``count`` prompt tokens were handed to the engine. Over a request, its record's."""
        ...

    def observe_completion(self, count: int) -> None:
        """``count`` tokens became part of an answer. Over a request, its record's."""
        ...

    def observe_inter_token(self, seconds: float, count: int = 1) -> None:
        """``count`` gaps of ``seconds`` each, between consecutive tokens of one choice."""
        ...

    def observe_http(self, route: str, method: str, status: int) -> None:
        """One HTTP answer. ``route`` is the template; use "unmatched" where none matched."""
        ...


class StepMetrics(Protocol):
    """What the engine client reports."""

    def observe_step(self, stats: StepStats) -> None: ...

    def observe_engine_restart(self) -> None: ...


class RequestMetricsFanOut:
    """Hands every report to several receivers, in order."""

    def __init__(self, receivers: Sequence[RequestMetrics]) -> None:
        self._receivers = tuple(receivers)

    def observe_finish(self, record: RequestRecord) -> None:
        for receiver in self._receivers:
            receiver.observe_finish(record)

    def observe_prompt(self, count: int) -> None:
        for receiver in self._receivers:
            receiver.observe_prompt(count)

    def observe_completion(self, count: int) -> None:
        for receiver in self._receivers:
            receiver.observe_completion(count)

    def observe_inter_token(self, seconds: float, count: int = 1) -> None:
        for receiver in self._receivers:
            receiver.observe_inter_token(seconds, count)

    def observe_http(self, route: str, method: str, status: int) -> None:
        for receiver in self._receivers:
            receiver.observe_http(route, method, status)


class NullMetrics:
    """Receives everything and keeps nothing: for in-process use without an exporter."""

    def observe_finish(self, record: RequestRecord) -> None:
        pass

    def observe_prompt(self, count: int) -> None:
        pass

    def observe_completion(self, count: int) -> None:
        pass

    def observe_inter_token(self, seconds: float, count: int = 1) -> None:
        pass

    def observe_http(self, route: str, method: str, status: int) -> None:
        pass

    def observe_step(self, stats: StepStats) -> None:
        pass

    def observe_engine_restart(self) -> None:
        pass


# One log line for every request of a route that generates. No text of either side is in it.


class RequestLog(NullMetrics):
    """Receives every report and writes the finished requests."""

    def __init__(self) -> None:
        self._log = logging.getLogger("quire.request")

    def observe_finish(self, record: RequestRecord) -> None:
        log_fields(
            self._log,
            f"{record.route} {record.status} {record.outcome}",
            request_id=record.request_id,
            client_request_id=record.client_request_id,
            stream=record.stream,
            choices=record.num_choices,
            prompt_tokens=record.prompt_tokens,
            cached_tokens=record.cached_tokens,
            completion_tokens=record.completion_tokens,
            finish_reasons=",".join(record.finish_reasons) or None,
            error_code=record.error_code,
            error_param=record.error_param,
            queue_ms=_milliseconds(record.queue_s),
            ttft_ms=_milliseconds(record.ttft_s),
            tpot_ms=_milliseconds(record.tpot_s),
            e2e_ms=_milliseconds(record.e2e_s),
        )


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 2)
