"""RequestTrace: what one HTTP request has been through, for its one record at the end."""

from __future__ import annotations

import re
import time
import uuid
from dataclasses import dataclass, field

from server.errors import ErrorCode, QuireError
from server.metrics.stats import Outcome, RequestMetrics, RequestRecord

LABEL_CHARACTERS = 128
CLIENT_CLOSED = 499  # no status was sent; the figure that log readers know
_UNSAFE = re.compile(r"[^A-Za-z0-9._:\-]")
_FIELD = re.compile(r"[A-Za-z0-9_.\-\[\]]{1,64}")
_OVERLOAD = (
    ErrorCode.QUEUE_FULL,
    ErrorCode.QUEUE_TIMEOUT,
    ErrorCode.SHUTTING_DOWN,
    ErrorCode.TOO_MANY_CONNECTIONS,
    ErrorCode.TEMPLATE_UNAVAILABLE,
    ErrorCode.MEMORY_BUDGET,
)


class ClientDisconnected(Exception):
    """The client disconnected: there is no one to answer."""


@dataclass(slots=True)
class RequestTrace:
    """Filled in as the request goes on. ``request_id`` is ours; ``label`` is the client's own."""

    method: str
    route: str
    generates: bool
    label: str | None = None
    request_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    arrival: float = field(default_factory=time.monotonic)
    status: int = 0
    error: QuireError | None = None
    disconnected: bool = False
    stream: bool = False
    num_choices: int = 1
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    finish_reasons: tuple[str, ...] = ()
    queue_s: float | None = None
    ttft_s: float | None = None
    _last_token: dict[int, float] = field(default_factory=dict)
    _gap_seconds: float = 0.0
    _gaps: int = 0

    @property
    def outcome(self) -> Outcome:
        if self.disconnected:
            return Outcome.ABORT
        if self.error is not None:
            if self.error.code in _OVERLOAD:
                return Outcome.OVERLOADED
            return Outcome.INVALID if self.error.code.value.status < 500 else Outcome.ERROR
        return Outcome.LENGTH if "length" in self.finish_reasons else Outcome.STOP

    @property
    def age_s(self) -> float:
        return time.monotonic() - self.arrival

    @property
    def last_token_s(self) -> float | None:
        """From the arrival to the last token so far."""
        return max(self._last_token.values()) - self.arrival if self._last_token else None

    def scheduled(self, waited_s: float) -> None:
        """A prompt of the request was scheduled for the first time. The longest wait counts."""
        self.queue_s = max(waited_s, self.queue_s or 0.0)

    def prompted(self, count: int, metrics: RequestMetrics) -> None:
        """The request's prompts, of ``count`` tokens, are handed to the engine."""
        self.prompt_tokens = count
        metrics.observe_prompt(count)

    def completed(self, count: int, metrics: RequestMetrics) -> None:
        """``count`` tokens became part of the answer: what its usage says in the end."""
        if count:
            self.completion_tokens += count
            metrics.observe_completion(count)

    def tokens(self, choice: int, count: int, metrics: RequestMetrics) -> None:
        """``count`` tokens of one choice arrived together."""
        now = time.monotonic()
        if self.ttft_s is None:
            self.ttft_s = now - self.arrival
        last = self._last_token.get(choice)
        self._last_token[choice] = now
        if last is not None:
            metrics.observe_inter_token((now - last) / count, count)
            self._gap_seconds += now - last
            self._gaps += count

    def report(self, metrics: RequestMetrics) -> None:
        status = self.status or CLIENT_CLOSED
        metrics.observe_http(self.route, self.method, status)
        if self.generates:
            metrics.observe_finish(self._record(status))

    def _record(self, status: int) -> RequestRecord:
        return RequestRecord(
            request_id=self.request_id,
            route=self.route,
            outcome=self.outcome,
            status=status,
            stream=self.stream,
            num_choices=self.num_choices,
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached_tokens,
            completion_tokens=self.completion_tokens,
            queue_s=self.queue_s,
            ttft_s=self.ttft_s,
            tpot_s=self._gap_seconds / self._gaps if self._gaps else None,
            e2e_s=self.age_s,
            finish_reasons=self.finish_reasons,
            error_code=self.error.code.value.code if self.error else None,
            error_param=self._error_param(),
            client_request_id=self.label,
        )

    def _error_param(self) -> str | None:
        """The path of the field at fault, where it looks like one: a client may write anything as
        a key, and a log holds no text of a request."""
        param = self.error.param if self.error else None
        return param if param and _FIELD.fullmatch(param) else None


def safe_label(given: bytes | None) -> str | None:
    """A client's own request id, fit for a log line and a header; None where nothing is left."""
    if not given:
        return None
    return _UNSAFE.sub("", given.decode("latin-1")[:LABEL_CHARACTERS]) or None
