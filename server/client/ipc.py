"""IpcEngineClient: the engine's client in the API process's event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

from server.client.streams import RequestStreams, unavailable
from server.engine.events import EngineFrame, Event, RequestMemory
from server.engine.request import EngineRequest
from server.errors import ErrorCode, QuireError
from server.host_budget import HostBudget
from server.ipc.frames import Abort, AskMemory, Command, Drain, Finish, Memory, Submit
from server.metrics.stats import StepMetrics

Send = Callable[[Command], None]

_ANSWER_S = 5.0  # an engine in a step longer than this is not waited for


class IpcEngineClient:
    """Implements server.engine.events.EngineClient over whichever engine is attached.

    The supervisor attaches a ready engine and detaches a dead one; between the two, submissions
    are refused. Lives in one event loop.
    """

    def __init__(self, metrics: StepMetrics, budget: HostBudget | None = None) -> None:
        self._streams = RequestStreams(budget)
        self._metrics = metrics
        self._send: Send | None = None
        self._questions: dict[int, asyncio.Future[tuple[RequestMemory, ...]]] = {}
        self._num_questions = 0

    @property
    def num_open(self) -> int:
        """Requests whose events have not all been read."""
        return self._streams.num_open

    async def submit(self, requests: Sequence[EngineRequest]) -> None:
        send = self._send
        if send is None:
            raise unavailable("The engine is not ready. Try again shortly.")
        await self._streams.submit(requests, lambda batch: send(Submit(batch)), self.abort)

    def events(self, request_id: str) -> AsyncIterator[Event]:
        return self._streams.events(request_id)

    def abort(self, request_ids: Sequence[str]) -> None:
        known = self._streams.drop(request_ids)
        if known and self._send is not None:
            self._send(Abort(tuple(known)))

    def finish(self, request_id: str, choice: int, num_tokens: int) -> None:
        if self._streams.end_choice(request_id, choice) and self._send is not None:
            self._send(Finish(request_id, choice, num_tokens))

    async def memory_of(self, request_ids: Sequence[str]) -> tuple[RequestMemory, ...]:
        if self._send is None:
            raise unavailable("The engine is not ready. Try again shortly.")
        self._num_questions += 1
        number = self._num_questions
        answer = self._questions[number] = asyncio.get_running_loop().create_future()
        self._send(AskMemory(number, tuple(request_ids)))
        try:
            return await asyncio.wait_for(answer, _ANSWER_S)
        except TimeoutError:
            raise unavailable("The engine is in a long step and has not answered.") from None
        finally:
            del self._questions[number]

    def drain(self) -> None:
        """The engine accepts no more requests; open ones go on. Callers of submit ask first whether
        the server drains (server.api.state)."""
        if self._send is not None:
            self._send(Drain())

    def attach(self, send: Send) -> None:
        """A ready engine takes this client's commands."""
        self._send = send

    def detach(self, error: QuireError) -> None:
        """The engine is gone: every open request ends in ``error``."""
        self._send = None
        self._streams.fail_all(error)
        for answer in self._questions.values():
            if not answer.done():
                answer.set_exception(unavailable(error.message))

    def tell(self, memory: Memory) -> None:
        """The attached engine's answer to a question, if the question is still open."""
        answer = self._questions.get(memory.number)
        if answer is not None and not answer.done():
            answer.set_result(memory.requests)

    def feed(self, frame: EngineFrame) -> None:
        """One frame of the attached engine."""
        if frame.stats is not None:
            self._metrics.observe_step(frame.stats)
        self._streams.feed(frame)
        given_up = self._streams.take_given_up()
        if given_up and self._send is not None:
            self._send(Abort(tuple(given_up)))


def shutting_down() -> QuireError:
    return QuireError(ErrorCode.SHUTTING_DOWN, "The server is shutting down.", retry_after=5)
