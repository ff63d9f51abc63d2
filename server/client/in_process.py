"""The engine in this process: a thread that steps, and the EngineClient protocol over it.

For tests, scripts and benchmarks that want no second process. The event loop hands commands over by
a queue and gets frames back by call_soon_threadsafe; the core itself is touched by its thread only.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Callable, Sequence

from server.client.streams import RequestStreams, unavailable
from server.engine.core import EngineCore
from server.engine.events import EngineFrame, Event, RequestMemory
from server.engine.request import EngineRequest
from server.metrics.stats import NullMetrics, StepMetrics

_IDLE_S = 0.1


class OfflineEngineClient:
    """Implements server.engine.events.EngineClient. Use as an async context manager."""

    def __init__(self, core: EngineCore, metrics: StepMetrics | None = None) -> None:
        self._core = core
        self._metrics = metrics or NullMetrics()
        self._streams = RequestStreams()
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._failed: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    async def __aenter__(self) -> OfflineEngineClient:
        self._loop = asyncio.get_running_loop()
        self._thread.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._closing.set()
        self._commands.put(lambda: None)
        await asyncio.to_thread(self._thread.join)
        self._streams.fail_all(unavailable("The engine was closed."))

    @property
    def num_open(self) -> int:
        """Requests whose events have not all been read."""
        return self._streams.num_open

    async def submit(self, requests: Sequence[EngineRequest]) -> None:
        if self._failed is not None:
            raise unavailable(f"The engine failed: {self._failed}", retry_after=None)
        await self._streams.submit(
            requests, lambda batch: self._commands.put(lambda: self._core.submit(batch)), self.abort
        )

    def events(self, request_id: str) -> AsyncIterator[Event]:
        return self._streams.events(request_id)

    def abort(self, request_ids: Sequence[str]) -> None:
        known = tuple(self._streams.drop(request_ids))
        if known:
            self._commands.put(lambda: self._core.abort(known))

    def finish(self, request_id: str, choice: int, num_tokens: int) -> None:
        if self._streams.end_choice(request_id, choice):
            self._commands.put(lambda: self._core.finish(request_id, choice, num_tokens))

    async def memory_of(self, request_ids: Sequence[str]) -> tuple[RequestMemory, ...]:
        if self._failed is not None:
            raise unavailable(f"The engine failed: {self._failed}", retry_after=None)
        found: list[RequestMemory] = []
        await self.call(lambda: found.extend(self._core.memory_of(request_ids)))
        return tuple(found)

    async def call(self, function: Callable[[], None]) -> None:
        """Runs ``function`` in the engine's thread between two steps (tests, inspection)."""
        done = asyncio.get_running_loop().create_future()
        loop = asyncio.get_running_loop()

        def run() -> None:
            function()
            loop.call_soon_threadsafe(done.set_result, None)

        self._commands.put(run)
        await done

    def _run(self) -> None:
        try:
            while not self._closing.is_set():
                self._take_commands()
                frame = self._core.step()
                if frame is not None:
                    self._to_loop(self._feed, frame)
        except Exception as error:  # the thread's outermost frame: everything open must hear of it
            self._failed = error
            self._to_loop(self._streams.fail_all, unavailable(f"The engine failed: {error}"))
            raise

    def _take_commands(self) -> None:
        """Every waiting command; without work, waits a little for the first."""
        try:
            self._commands.get(block=not self._core.has_work, timeout=_IDLE_S)()
            while True:
                self._commands.get(block=False)()
        except queue.Empty:
            return

    def _feed(self, frame: EngineFrame) -> None:
        if frame.stats is not None:
            self._metrics.observe_step(frame.stats)
        self._streams.feed(frame)

    def _to_loop(self, function: Callable[..., None], *arguments: object) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, *arguments)
