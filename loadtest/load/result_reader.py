"""Reads ended exchanges a little at a time, so that reading them makes no other answer late.

Streams that began together often end together, and to read a thousand answers takes half a second:
nothing that arrives then would get its true time. So a turn of the loop reads for a millisecond at
most, and rests for as long.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Generator

from loadtest.stats.records import RequestRecord

TURN_S = 0.001

Reading = Generator[None, None, RequestRecord]


class ResultReader:
    """``on_record`` gets each record when it has been read, in the order added."""

    def __init__(self, on_record: Callable[[RequestRecord], None]) -> None:
        self._hear = on_record
        self._waiting: deque[tuple[Reading, asyncio.Future[RequestRecord]]] = deque()
        self._task: asyncio.Task[None] | None = None

    def add(self, reading: Reading) -> asyncio.Future[RequestRecord]:
        """The future holds the record, for callers that need it."""
        loop = asyncio.get_running_loop()
        read: asyncio.Future[RequestRecord] = loop.create_future()
        self._waiting.append((reading, read))
        if self._task is None:
            self._task = loop.create_task(self._read())
        return read

    def finish(self) -> None:
        """Reads what is left at once: nothing is measured any more."""
        if self._task is not None:
            self._task.cancel()
        self._turn(float("inf"))

    async def _read(self) -> None:
        while self._waiting:
            self._turn(time.perf_counter() + TURN_S)
            await asyncio.sleep(TURN_S)
        self._task = None

    def _turn(self, until: float) -> None:
        while self._waiting and time.perf_counter() < until:
            reading, read = self._waiting[0]
            try:
                next(reading)
            except StopIteration as end:
                self._waiting.popleft()
                self._hear(end.value)
                if not read.done():
                    read.set_result(end.value)
