"""What became of one request, in the words that measures are made of. Seconds from the start."""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from loadtest.client.exchange import DONE, Exchange, Failure, SSEParser

_STEP = 64  # pieces of an answer, a quarter of a millisecond
_TRUNCATED = Failure.TRUNCATED


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One request. Times are seconds from the start of the run; None where a thing never happened.

    ``intended`` is when the schedule wanted it sent, ``sent`` when it was; in a closed loop they
    are the same. ``token_times`` are arrivals of events that carried text: a server may put several
    tokens into one. ``completion_tokens`` is the server's own count, ``events_with_text`` ours;
    ``first_event_tokens`` is its count up to the first event with text, where that event tells it.
    """

    index: int
    intended: float
    sent: float
    ended: float
    status: int
    outcome: str  # "ok", "http_<status>", a Failure, or "error" for an error event in a stream
    connect_seconds: float | None = None
    token_times: tuple[float, ...] = ()
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    first_event_tokens: int | None = None
    finish_reason: str | None = None
    text: str = ""
    detail: str = ""
    kind: str = "normal"  # or what chaos made of it
    retries: int = 0

    @property
    def ok(self) -> bool:
        return self.outcome == "ok"

    @property
    def first_token(self) -> float | None:
        return self.token_times[0] if self.token_times else None

    @property
    def events_with_text(self) -> int:
        return len(self.token_times)

    @property
    def output_tokens(self) -> int:
        """The server's count where it gave one, else one for each event with text."""
        if self.completion_tokens is None:
            return self.events_with_text
        return self.completion_tokens

    @property
    def tokens_after_first_event(self) -> float:
        """Output tokens that came after the first event with text. Where the server does not tell
        how many that event held, each event is taken to hold as many as the others."""
        if self.first_event_tokens is not None:
            return self.output_tokens - self.first_event_tokens
        events = self.events_with_text
        return self.output_tokens * (events - 1) / events if events else 0.0

    def as_json(self) -> dict[str, Any]:
        """Without the text: lengths and times are what a result file is for."""
        fields = asdict(self)
        del fields["text"]
        return fields


@dataclass(slots=True)
class _Answer:
    """What the events or the body say, gathered."""

    text: list[str] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    finish_reason: str | None = None
    usage: Mapping[str, Any] | None = None
    first_tokens: int | None = None
    error: str | None = None
    malformed: str | None = None
    done: bool = False  # the last event said so

    def take(self, value: object, time: float) -> None:
        if not isinstance(value, dict):
            self.malformed = "an event is not a JSON object"
            return
        if value.get("error"):
            self.error = _error_text(value["error"])
            return
        if isinstance(value.get("usage"), dict):
            self.usage = value["usage"]
        choices = value.get("choices") or []
        if not isinstance(choices, list) or not all(isinstance(one, dict) for one in choices):
            self.malformed = "an event's choices are not a list of objects"
            return
        for choice in choices:
            text = _text_of(choice)
            if text:
                if not self.times and isinstance(value.get("usage"), dict):
                    self.first_tokens = _count(value["usage"].get("completion_tokens"))
                self.text.append(text)
                self.times.append(time)
            if choice.get("finish_reason"):
                self.finish_reason = str(choice["finish_reason"])


def read_exchange(
    exchange: Exchange, *, index: int, start: float, intended: float, kind: str = "normal"
) -> RequestRecord:
    """The record of an ended exchange. ``start`` is the perf_counter of second 0."""
    reading = read_in_steps(exchange, index=index, start=start, intended=intended, kind=kind)
    while True:
        try:
            next(reading)
        except StopIteration as end:
            record: RequestRecord = end.value
            return record


def read_in_steps(
    exchange: Exchange, *, index: int, start: float, intended: float, kind: str
) -> Generator[None, None, RequestRecord]:
    """As read_exchange, with a rest after every few events: a long answer takes milliseconds."""
    answer = _Answer()
    if exchange.is_stream:
        yield from _read_events(exchange, answer)
    else:
        _read_body(exchange, answer)
    usage = answer.usage or {}
    details = usage.get("prompt_tokens_details")
    outcome, detail = _outcome(exchange, answer)
    return RequestRecord(
        index=index,
        intended=intended,
        sent=exchange.sent - start,
        ended=exchange.ended - start,
        status=exchange.status,
        outcome=outcome,
        connect_seconds=(
            None if exchange.connected is None else exchange.connected - exchange.began
        ),
        token_times=tuple(time - start for time in answer.times),
        prompt_tokens=_count(usage.get("prompt_tokens")),
        cached_tokens=_count(details.get("cached_tokens")) if isinstance(details, dict) else None,
        completion_tokens=_count(usage.get("completion_tokens")),
        first_event_tokens=answer.first_tokens,
        finish_reason=answer.finish_reason,
        text="".join(answer.text),
        detail=detail,
        kind=kind,
        retries=exchange.retries,
    )


def _outcome(exchange: Exchange, answer: _Answer) -> tuple[str, str]:
    """Its name, and what there is to say about it. What the server said itself goes first."""
    failure = exchange.failure
    if answer.error is not None and exchange.status == 200 and failure in (None, _TRUNCATED):
        return "error", answer.error
    if failure is not None:
        return str(failure), exchange.detail
    if exchange.status != 200:
        return f"http_{exchange.status}", answer.error or answer.malformed or ""
    if answer.malformed is not None:
        return str(Failure.MALFORMED), answer.malformed
    if exchange.is_stream and not answer.done:
        return str(_TRUNCATED), "the stream ended without data: [DONE]"
    return "ok", ""


def _read_events(exchange: Exchange, answer: _Answer) -> Generator[None, None, None]:
    cutter = SSEParser()
    for number, (piece, time) in enumerate(
        zip(exchange.pieces, exchange.piece_times, strict=True), 1
    ):
        for data in cutter.feed(piece):
            answer.done = data == DONE
            if not answer.done:
                answer.take(_json(data), time)
        if number % _STEP == 0:
            yield


def _read_body(exchange: Exchange, answer: _Answer) -> None:
    if exchange.failure is None or exchange.body:
        answer.take(_json(bytes(exchange.body)), exchange.ended)
    if exchange.status == 200 and exchange.failure is None and answer.malformed:
        answer.malformed = "the answer is neither server-sent events nor JSON"


def _json(data: bytes) -> object:
    try:
        return json.loads(data)
    except ValueError:
        return None


def _text_of(choice: Mapping[str, Any]) -> str:
    """A completion's text, or a chat's content, reasoning or tool arguments: whatever is output."""
    delta = choice.get("delta") or choice.get("message")
    if not isinstance(delta, dict):
        return str(choice.get("text") or "")
    parts = [delta.get("reasoning_content"), delta.get("reasoning"), delta.get("content")]
    calls = delta.get("tool_calls")
    for call in calls if isinstance(calls, list) else ():
        function = call.get("function") if isinstance(call, dict) else None
        parts.append(function.get("arguments") if isinstance(function, dict) else None)
    return "".join(part for part in parts if isinstance(part, str))


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _error_text(error: object) -> str:
    return str(error.get("message", error)) if isinstance(error, dict) else str(error)
