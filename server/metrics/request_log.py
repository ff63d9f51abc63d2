"""One log line for every request of a route that generates. No text of either side is in it."""

from __future__ import annotations

import logging

from server.logs import log_fields
from server.metrics.stats import NullMetrics, RequestRecord


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
