"""Turns: what all connections together may do in one turn of the event loop.

Reading and decoding what clients send is done in passes, each over one connection and bounded: one
head, PASS_CHUNKS chunks, PASS_BYTES bytes of body. A turn has PASSES of them, so it handles at most
PASSES heads, PASSES * PASS_CHUNKS chunks and PASSES * PASS_BYTES bytes, whoever sent them. What is
left waits in a queue while its connection is not read from. Questions about the server's own state
go before the rest, up to half of a turn: hundreds of requests that begin at once must not hold up
the one that asks whether the server lives.
"""

from __future__ import annotations

import asyncio
import enum
from collections import deque
from typing import Protocol

PASSES = 16  # in one turn of the loop
TURN_READ_BYTES = 1024 * 1024  # read by all connections in a turn, before each gets SMALL_READ only
FULL_READ = 64 * 1024
SMALL_READ = 4 * 1024  # enough for the head of a health probe
PROBE_PASSES = PASSES // 2  # a turn's first, where probes wait
_BODY_SHARE = 4  # one pass in so many is a body's, where both heads and bodies wait


class Work(enum.Enum):
    """What a connection's bytes are, as far as they have come."""

    PROBE = "probe"  # the head of a question about the server's own state
    HEAD = "head"
    BODY = "body"


class Worker(Protocol):
    """A connection that has bytes to handle."""

    queued: bool

    @property
    def waiting(self) -> Work: ...

    def work(self) -> bool:
        """One pass. True where there is more to do with the bytes that have come."""
        ...

    def regulate(self) -> None:
        """Stops or resumes reading, after ``queued`` has changed."""
        ...


class Turns:
    """Hands out passes. One for all connections of a server; its loop's thread only."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._buffer = memoryview(bytearray(FULL_READ))
        self._queues: dict[Work, deque[Worker]] = {work: deque() for work in Work}
        self._renewed = False  # the next turn's renewal is on its way
        self._renew()

    def buffer(self, small: bool) -> memoryview:
        """Where the next read goes, whatever the connection: its bytes are taken at once."""
        return self._buffer[: SMALL_READ if small or self._read_left <= 0 else FULL_READ]

    def taken(self, nbytes: int) -> bytes:
        """What a read of ``nbytes`` has put into the buffer."""
        self._read_left -= nbytes
        self._ask_for_renewal()
        return bytes(self._buffer[:nbytes])

    def offer(self, worker: Worker) -> None:
        """``worker`` has something to do: now, if this turn has a pass left, else in its turn."""
        if worker.queued:
            return
        if self._passes_left and not any(self._queues.values()):
            self._pass(worker)
        else:
            self._queue(worker)

    def _pass(self, worker: Worker) -> None:
        self._passes_left -= 1
        self._ask_for_renewal()
        if worker.work():
            self._queue(worker)
        else:
            worker.regulate()

    def _queue(self, worker: Worker) -> None:
        worker.queued = True
        self._queues[worker.waiting].append(worker)
        self._ask_for_renewal()
        worker.regulate()

    def _ask_for_renewal(self) -> None:
        """What call_soon is given in one turn runs at the beginning of the next."""
        if not self._renewed:
            self._renewed = True
            self._loop.call_soon(self._turn)

    def _renew(self) -> None:
        self._passes_left = PASSES
        self._read_left = TURN_READ_BYTES

    def _turn(self) -> None:
        self._renewed = False
        self._renew()
        while self._passes_left and any(self._queues.values()):
            worker = self._queues[self._next()].popleft()
            worker.queued = False
            self._pass(worker)

    def _next(self) -> Work:
        """The queue whose first is next. At least one of them is not empty."""
        probes, heads, bodies = (bool(self._queues[work]) for work in Work)
        if probes and (self._passes_left > PASSES - PROBE_PASSES or not (heads or bodies)):
            return Work.PROBE
        if bodies and (self._passes_left % _BODY_SHARE == 0 or not heads):
            return Work.BODY
        return Work.HEAD
