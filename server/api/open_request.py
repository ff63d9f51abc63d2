"""OpenRequest: one HTTP request that generates, from its head to its last byte.

    arrives -> prepared: what the engine is asked -> submitted whole -> read as deltas -> ended

It is its own trace; while it asks something of the engine, /memory?request_id= finds it; and it
ends what it has asked, however it goes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field

from server.api.trace import RequestTrace
from server.api.usage import memory_usage, timings, token_usage
from server.engine.events import ChoiceOutput, EngineClient, Event, RequestMemory
from server.engine.request import EngineRequest
from server.errors import ErrorCode, QuireError
from server.metrics.stats import RequestMetrics
from server.output.choice import Delta
from server.output.processor import OutputOptions, OutputProcessor
from server.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What an open request works with, the same for all of them."""

    engine: EngineClient
    tokenizer: Tokenizer
    metrics: RequestMetrics
    live: OpenRequests


@dataclass(slots=True)
class OpenRequest(RequestTrace):
    """The engine requests of one HTTP request, one a prompt, and what has become of them.

    A choice's index over all prompts is prompt index x n + choice.
    """

    surroundings: Surroundings = field(kw_only=True)
    requests: Sequence[EngineRequest] = ()
    _processors: list[OutputProcessor] = field(default_factory=list)
    _memory: dict[int, RequestMemory] = field(default_factory=dict)
    _submitted: bool = False

    @property
    def engine_ids(self) -> list[str]:
        return [request.request_id for request in self.requests]

    @contextmanager
    def asking(self, requests: Sequence[EngineRequest], options: OutputOptions) -> Iterator[None]:
        """While entered, the request can be found. What has not ended then is ended."""
        around = self.surroundings
        self.requests = requests
        self._processors = [
            OutputProcessor(around.tokenizer, request, options) for request in requests
        ]
        self.num_choices = sum(request.n for request in requests)
        with around.live.listed(self):
            try:
                yield
            finally:
                self._end()

    async def submit(self) -> None:
        """Returns once all are accepted. Raises QuireError."""
        self._submitted = True
        prompt = sum(len(request.prompt_token_ids) for request in self.requests)
        self.prompted(prompt, self.surroundings.metrics)
        await self.surroundings.engine.submit(self.requests)

    async def deltas(self) -> AsyncGenerator[tuple[int, Delta], None]:
        """(choice index, delta) until every choice has ended. Raises QuireError."""
        unfinished = len(self.requests)
        async with aclosing(merged_events(self.surroundings.engine, self.engine_ids)) as events:
            async for index, event in events:
                delta = self._feed(index, event)
                if delta is not None:
                    yield index * self.requests[index].n + delta.choice, delta
                    if delta.finish_reason and self._processors[index].finished:
                        unfinished -= 1
                if not unfinished:
                    return
        raise QuireError(ErrorCode.ENGINE_UNAVAILABLE, "The engine ended before the request did.")

    def _feed(self, index: int, event: Event | QuireError) -> Delta | None:
        request, processor = self.requests[index], self._processors[index]
        metrics = self.surroundings.metrics
        kept = processor.num_completion_tokens
        if isinstance(event, ChoiceOutput) and event.memory is not None:
            self._memory[index] = event.memory
        try:
            if isinstance(event, QuireError):
                raise event
            delta = processor.feed(event)
        except QuireError:
            self.abort()
            raise
        engine = self.surroundings.engine
        for stopped in processor.take_stopped():
            engine.finish(request.request_id, stopped.choice, stopped.num_tokens)
        if not isinstance(event, ChoiceOutput):
            if event.queue_seconds is not None:
                self.scheduled(event.queue_seconds)
        elif event.token_ids:
            choice = index * request.n + event.choice
            self.tokens(choice, len(event.token_ids), metrics)
            self.completed(processor.num_completion_tokens - kept, metrics)
        return delta

    def abort(self) -> None:
        """Ends what has not ended. To be called before the events are left: an engine client may
        forget a request whose events are not read."""
        open_ids = [
            request.request_id
            for request, processor in zip(self.requests, self._processors, strict=True)
            if not processor.finished
        ]
        if self._submitted and open_ids:
            self._submitted = False
            self.surroundings.engine.abort(open_ids)

    def _end(self) -> None:
        self.abort()
        self.cached_tokens = sum(one.num_cached_tokens for one in self._processors)
        self.finish_reasons = tuple(
            reason for one in self._processors for reason in one.finish_reasons if reason
        )

    def usage(self, *, details: bool = False) -> dict[str, object]:
        """OpenAI's usage object, over all prompts and choices; with ``details`` ours in it."""
        usage = token_usage(
            prompt=self.prompt_tokens,
            completion=sum(one.num_completion_tokens for one in self._processors),
            cached=sum(one.num_cached_tokens for one in self._processors),
        )
        if details:
            usage["memory"] = memory_usage(list(self._memory.values()))
            usage["timings"] = timings(self)
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


_PREFIXES = ("cmpl-", "chatcmpl-")  # of the id in an answer's body


class OpenRequests:
    """The requests that are under way, by the ids under which a client knows them.

    Not thread-safe: one event loop owns it.
    """

    def __init__(self) -> None:
        self._by_id: dict[str, OpenRequest] = {}

    @contextmanager
    def listed(self, request: OpenRequest) -> Iterator[None]:
        """While entered, the request can be found."""
        self._by_id[request.request_id] = request
        try:
            yield
        finally:
            del self._by_id[request.request_id]

    def find(self, name: str) -> list[OpenRequest]:
        """By the server's id, as it stands in the answer or without its prefix; else all that
        carry this label of the client's, which need not be unique."""
        own = name
        for prefix in _PREFIXES:
            own = own.removeprefix(prefix)
        if own in self._by_id:
            return [self._by_id[own]]
        return [request for request in self._by_id.values() if request.label == name]
