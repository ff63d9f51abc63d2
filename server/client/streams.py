"""Request streams: one engine frame a step, taken apart into each request's own events.

Both engine clients (across the process boundary and in this process) own one RequestStreams and
call it from their event loop only. A stream holds at most what its request may generate; what all
of them hold unread is counted in the process's budget, and where that is at its end the stream with
the most unread events is given up: its client does not read. Frames about ids that are not open
here are ignored: the request was aborted, or its engine is gone.

    submit --> waiting --Accepted--> open --last choice's finish--> closed
                  |                    |
               Refused            abort, fail_all

A choice that its client ended (a stop string) goes on in the engine until the engine hears of it.
The tokens of that overrun are dropped here; the engine counts them, once it has heard.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence

from server.engine.events import ChoiceOutput, EngineFrame, Event, PromptOutput, Refused
from server.engine.request import EngineRequest
from server.errors import ErrorCode, QuireError, client_error_code
from server.host_budget import Holding, HostBudget, Use

# An event without its tokens and log-probabilities, and a token: objects, measured.
EVENT_BYTES = 600
TOKEN_BYTES = 40
_NO_BOUND = 1 << 62  # bytes: of a client in the engine's own process


class _Stream:
    """One accepted request's undelivered events."""

    __slots__ = ("closed", "error", "events", "holding", "open_choices", "wake")

    def __init__(self, n: int, holding: Holding) -> None:
        self.holding = holding
        self.events: deque[Event] = deque()
        self.open_choices = set(range(n))
        self.wake = asyncio.Event()
        self.closed = False
        self.error: QuireError | None = None

    def put(self, event: Event) -> None:
        """Raises QuireError where the budget has no room for it."""
        self.holding.hold(self.holding.nbytes + event_bytes(event))
        self.events.append(event)
        self.wake.set()

    def take(self) -> Event:
        event = self.events.popleft()
        self.holding.hold(self.holding.nbytes - event_bytes(event))
        return event

    def forget(self) -> None:
        """Lets go of what was not read."""
        self.events.clear()
        self.holding.hold(0)

    def end_choice(self, choice: int) -> None:
        self.open_choices.discard(choice)
        if not self.open_choices:
            self.close()

    def close(self, error: QuireError | None = None) -> None:
        self.closed, self.error = True, error
        self.wake.set()


class RequestStreams:
    """The open requests of one client. Not thread-safe: one event loop owns it."""

    def __init__(self, budget: HostBudget | None = None) -> None:
        self._budget = budget or HostBudget(_NO_BOUND)
        self._given_up: list[str] = []
        self._streams: dict[str, _Stream] = {}
        self._answers: dict[str, asyncio.Future[None]] = {}

    @property
    def num_open(self) -> int:
        return len(self._streams)

    def open(self, requests: Sequence[EngineRequest]) -> asyncio.Future[None]:
        """Opens a stream for each request. The future ends with the engine's answer to the list."""
        answer = asyncio.get_running_loop().create_future()
        for request in requests:
            self._streams[request.request_id] = _Stream(request.n, self._budget.hold(Use.EVENTS))
            self._answers[request.request_id] = answer
        return answer

    async def submit(
        self,
        requests: Sequence[EngineRequest],
        send: Callable[[tuple[EngineRequest, ...]], None],
        abort: Callable[[Sequence[str]], None],
    ) -> None:
        """Opens the streams, sends the requests, and waits for the engine's answer to them.

        Who is cancelled meanwhile hears nothing of them any more, so that they are aborted.

        Raises:
            QuireError: the engine refused the list, or died before its answer.
        """
        answer = self.open(requests)
        send(tuple(requests))
        try:
            await answer
        except asyncio.CancelledError:
            abort([request.request_id for request in requests])
            raise

    def feed(self, frame: EngineFrame) -> None:
        """Hands out one frame's answers and events."""
        for accepted in frame.accepted:
            self._answer(accepted.request_ids, None)
        for refused in frame.refused:
            self._answer(refused.request_ids, refusal(refused))
            self.drop(refused.request_ids)
        for prompt in frame.prompts:
            self._put(prompt)
        for output in frame.choices:
            self._put_choice(output)

    async def events(self, request_id: str) -> AsyncIterator[Event]:
        """The request's events until its last choice has ended.

        Leaving early keeps the stream open, so that a later abort still finds it.

        Raises:
            QuireError: the engine died or restarted under the request.
        """
        stream = self._streams.get(request_id)
        if stream is None:
            raise unavailable(
                "The request is not open: its engine was restarted, or it was aborted."
            )
        try:
            while True:
                while stream.events:
                    yield stream.take()
                if stream.closed:
                    break
                stream.wake.clear()
                await stream.wake.wait()
        finally:
            if stream.closed and self._streams.get(request_id) is stream:
                del self._streams[request_id]
                stream.forget()
        if stream.error is not None:
            raise _own(stream.error)

    def end_choice(self, request_id: str, choice: int) -> bool:
        """Closes one choice by the client's will. False when it had already ended."""
        stream = self._streams.get(request_id)
        if stream is None or choice not in stream.open_choices:
            return False
        stream.end_choice(choice)
        return True

    def drop(self, request_ids: Iterable[str]) -> list[str]:
        """Forgets the requests and ends their streams; returns those that were open."""
        dropped = []
        for request_id in request_ids:
            self._answers.pop(request_id, None)
            stream = self._streams.pop(request_id, None)
            if stream is not None:
                stream.close()
                stream.forget()
                dropped.append(request_id)
        return dropped

    def fail_all(self, error: QuireError) -> None:
        """Every open request ends in ``error``, every unanswered list is refused with it."""
        self._answer(tuple(self._answers), error)
        for stream in self._streams.values():
            stream.close(error)
            stream.forget()
        self._streams.clear()

    def _answer(self, request_ids: Iterable[str], error: QuireError | None) -> None:
        for request_id in request_ids:
            future = self._answers.pop(request_id, None)
            if future is None or future.done():
                continue
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(_own(error))

    def _put(self, event: PromptOutput) -> None:
        stream = self._streams.get(event.request_id)
        if stream is not None and not stream.closed:
            self._put_where_there_is_room(stream, event)

    def _put_where_there_is_room(self, stream: _Stream, event: Event) -> None:
        while not stream.closed:
            try:
                stream.put(event)
                return
            except QuireError:
                self._give_up_the_fullest(stream, event_bytes(event))

    def _give_up_the_fullest(self, growing: _Stream, nbytes: int) -> None:
        """Of all streams, one of which would grow by ``nbytes``."""

        def unread(item: tuple[str, _Stream]) -> int:
            return item[1].holding.nbytes + (nbytes if item[1] is growing else 0)

        request_id, stream = max(self._streams.items(), key=unread)
        self._given_up.append(request_id)
        stream.open_choices.clear()
        stream.forget()
        stream.close(
            QuireError(
                ErrorCode.MEMORY_BUDGET,
                "The answer was not read, and the server's memory for unread answers is full. "
                "Read it as it comes, or ask for less.",
                retry_after=1,
            )
        )
        del self._streams[request_id]

    def take_given_up(self) -> list[str]:
        """Requests whose streams were given up since the last call: the engine is to be told."""
        given_up, self._given_up = self._given_up, []
        return given_up

    def _put_choice(self, event: ChoiceOutput) -> None:
        stream = self._streams.get(event.request_id)
        if stream is None or event.choice not in stream.open_choices:
            return  # aborted, or ended by a stop string: the event crossed it on the way
        self._put_where_there_is_room(stream, event)
        if event.finish_reason is not None and not stream.closed:
            stream.end_choice(event.choice)


def event_bytes(event: Event) -> int:
    """What an event takes while it waits."""
    arrays = event.logprobs
    size = 0 if arrays is None else len(arrays.token_ids) + len(arrays.logprobs)
    if isinstance(event, ChoiceOutput):
        size += TOKEN_BYTES * len(event.token_ids)
    return EVENT_BYTES + size


def _own(error: QuireError) -> QuireError:
    """A fresh error for one raiser: a shared one would gather every raiser's traceback."""
    return QuireError(error.code, error.message, param=error.param, retry_after=error.retry_after)


def refusal(refused: Refused) -> QuireError:
    """The client's error for the engine's refusal."""
    code = client_error_code(refused.code)
    return QuireError(code, refused.message, retry_after=refused.retry_after)


def unavailable(message: str, retry_after: int | None = 1) -> QuireError:
    return QuireError(ErrorCode.ENGINE_UNAVAILABLE, message, retry_after=retry_after)
