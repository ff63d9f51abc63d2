"""One HTTP request's work in the engine: submitted whole, read as deltas, ended for certain."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing

from server.api.state import ApiState
from server.api.trace import RequestTrace
from server.api.usage import memory_usage, timings, token_usage
from server.engine.events import ChoiceOutput, EngineClient, Event, RequestMemory
from server.engine.request import EngineRequest
from server.errors import ErrorCode, QuireError
from server.output.choice import Delta
from server.output.processor import OutputOptions, OutputProcessor


class Generation:
    """The engine requests of one HTTP request, one a prompt.

    A choice's index over all prompts is prompt index x n + choice.
    """

    def __init__(
        self,
        state: ApiState,
        requests: Sequence[EngineRequest],
        options: OutputOptions,
        trace: RequestTrace,
    ) -> None:
        self._engine = state.engine
        self._metrics = state.metrics
        self._requests = requests
        self._trace = trace
        self._processors = [
            OutputProcessor(state.tokenizer, request, options) for request in requests
        ]
        self._memory: dict[int, RequestMemory] = {}
        self._submitted = False
        trace.num_choices = self.num_choices

    @property
    def num_choices(self) -> int:
        return sum(request.n for request in self._requests)

    async def submit(self) -> None:
        """Returns once all are accepted. Raises QuireError."""
        self._submitted = True
        prompt = sum(len(request.prompt_token_ids) for request in self._requests)
        self._trace.prompted(prompt, self._metrics)
        await self._engine.submit(self._requests)

    async def deltas(self) -> AsyncGenerator[tuple[int, Delta], None]:
        """(choice index, delta) until every choice has ended. Raises QuireError."""
        ids = [request.request_id for request in self._requests]
        unfinished = len(ids)
        async with aclosing(merged_events(self._engine, ids)) as events:
            async for index, event in events:
                delta = self._feed(index, event)
                if delta is not None:
                    yield index * self._requests[index].n + delta.choice, delta
                    if delta.finish_reason and self._processors[index].finished:
                        unfinished -= 1
                if not unfinished:
                    return
        raise QuireError(ErrorCode.ENGINE_UNAVAILABLE, "The engine ended before the request did.")

    def _feed(self, index: int, event: Event | QuireError) -> Delta | None:
        request, processor = self._requests[index], self._processors[index]
        discarded, kept = processor.num_discarded, processor.num_completion_tokens
        if isinstance(event, ChoiceOutput) and event.memory is not None:
            self._memory[index] = event.memory
        try:
            if isinstance(event, QuireError):
                raise event
            delta = processor.feed(event)
        except QuireError:
            self.abort()
            raise
        for choice in processor.take_stopped():
            self._engine.finish(request.request_id, choice)
        if processor.num_discarded > discarded:
            self._metrics.observe_discarded(processor.num_discarded - discarded)
        if not isinstance(event, ChoiceOutput):
            if event.queue_seconds is not None:
                self._trace.scheduled(event.queue_seconds)
        elif event.token_ids:
            choice = index * request.n + event.choice
            self._trace.tokens(choice, len(event.token_ids), self._metrics)
            self._trace.completed(processor.num_completion_tokens - kept, self._metrics)
        return delta

    def abort(self) -> None:
        """Ends what has not ended. To be called before the events are left: an engine client may
        forget a request whose events nobody reads."""
        open_ids = [
            request.request_id
            for request, processor in zip(self._requests, self._processors, strict=True)
            if not processor.finished
        ]
        if self._submitted and open_ids:
            self._submitted = False
            self._engine.abort(open_ids)

    def close(self) -> None:
        """Ends what has not ended, and completes the trace. To be called however it went."""
        self.abort()
        self._trace.cached_tokens = sum(one.num_cached_tokens for one in self._processors)
        self._trace.finish_reasons = tuple(
            reason for one in self._processors for reason in one.finish_reasons if reason
        )

    def usage(self, *, details: bool = False) -> dict[str, object]:
        """OpenAI's usage object, over all prompts and choices; with ``details`` ours in it."""
        usage = token_usage(
            prompt=sum(len(request.prompt_token_ids) for request in self._requests),
            completion=sum(one.num_completion_tokens for one in self._processors),
            cached=sum(one.num_cached_tokens for one in self._processors),
        )
        if details:
            usage["memory"] = memory_usage(list(self._memory.values()))
            usage["timings"] = timings(self._trace)
        return usage


async def merged_events(
    engine: EngineClient, request_ids: Sequence[str]
) -> AsyncGenerator[tuple[int, Event | QuireError], None]:
    """The events of several requests as they come, each with its request's index. An error that
    ends one of them comes as an item, while the others are still open."""
    if len(request_ids) == 1:
        events = engine.events(request_ids[0])
        try:
            async for event in events:
                yield 0, event
        finally:
            await _close(events)
        return
    # Short, so that what is not read waits in the client's own queues, where it is counted.
    queue: asyncio.Queue[tuple[int, Event | QuireError | None]] = asyncio.Queue(len(request_ids))

    async def pump(index: int, request_id: str) -> None:
        try:
            async for event in engine.events(request_id):
                await queue.put((index, event))
        except QuireError as error:
            await queue.put((index, error))
        else:
            await queue.put((index, None))

    pumps = [asyncio.create_task(pump(*pair)) for pair in enumerate(request_ids)]
    running = len(pumps)
    try:
        while running:
            index, item = await queue.get()
            if item is None:
                running -= 1
            else:
                yield index, item
    finally:
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


async def _close(events: AsyncIterator[Event]) -> None:
    """Ends an iterator that was left early, where it is one that can be told."""
    if isinstance(events, AsyncGenerator):
        await events.aclose()
