"""One budget for what clients make the API process hold: bodies, requests, events, and work.

Half of it, about, is for what is *held*: bodies that arrive, requests that were made of them, and
events that a slow client has not read. Each grows only where there is room, and is refused or given
up where there is none; nothing waits for it. The rest is for *work* that needs much for a moment,
parsing, rendering, tokenising: that waits its turn. Who works holds nothing that another who works
waits for, and who holds never waits for what is held, so there is no deadlock.

    held   |-- large bodies --|-- small bodies --|-- requests --|-- events --|
           0                 1/2               3/4            7/8            1

A use may grow up to its mark, all uses together: where large bodies find no room, small ones still
do, and what was begun can end.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from enum import StrEnum
from types import TracebackType
from typing import TypeVar

from server.errors import ErrorCode, QuireError
from server.units import format_size

T = TypeVar("T")

SMALL_BODY = 64 * 1024  # bytes
RETRY_AFTER_S = 1
_WORK_SHARES = (1 / 2, 1 / 8)  # of the whole: for large work, and for small that would wait for it
_SMALL_WORK_PART = 8  # small work takes at most one part in so many of its room


class Use(StrEnum):
    """What a part of the budget is for. A figure of each is shown."""

    BODIES = "bodies"  # arriving, or not parsed yet
    REQUESTS = "requests"  # parsed, rendered, tokenised
    EVENTS = "events"  # made by the engine, not read by the client
    WORK = "work"  # needed while a body is parsed, a chat rendered, a text tokenised


_MARKS = {Use.BODIES: 1 / 2, Use.REQUESTS: 7 / 8, Use.EVENTS: 1.0}
_SMALL_BODIES_MARK = 3 / 4


class HostBudget:
    """Counts bytes by use. Lives in one event loop; no method blocks.

    ``freed`` hears how many bytes were given back, whenever some were.
    """

    def __init__(self, nbytes: int, freed: Callable[[int], None] = lambda nbytes: None) -> None:
        self.nbytes = nbytes
        self._freed = freed
        self._work = _Room(int(nbytes * _WORK_SHARES[0]))
        self._small_work = _Room(int(nbytes * _WORK_SHARES[1]))
        self.held_bytes = nbytes - self._work.nbytes - self._small_work.nbytes
        self._held: dict[Use, int] = {use: 0 for use in Use if use is not Use.WORK}
        self._sum = 0  # of what is held
        self.peak_bytes = 0

    @property
    def used(self) -> dict[Use, int]:
        """Bytes in use, by use."""
        return {**self._held, Use.WORK: self._work.used + self._small_work.used}

    def reading(self) -> dict[str, int]:
        """Bytes: ``budget``, ``peak`` of all uses together, and each use by its name."""
        now = {str(use): nbytes for use, nbytes in self.used.items()}
        return {"budget": self.nbytes, "peak": self.peak_bytes, **now}

    def hold(self, use: Use) -> Holding:
        """A holding of nothing yet; leaving it gives back what it has grown to."""
        return Holding(self, use)

    async def turn(self, nbytes: int, what: str) -> Turn:
        """Waits, in order, until ``nbytes`` are there for work. The caller has to end the turn.

        Raises:
            QuireError: 413 where there never can be room; ``what`` names the work.
        """
        if nbytes > self._work.nbytes:
            raise QuireError(
                ErrorCode.BODY_TOO_LARGE,
                f"{what} takes {format_size(nbytes)} of the server's memory, which keeps "
                f"{format_size(self._work.nbytes)} for such work. Send less, or have "
                "--api-memory raised.",
            )
        small = nbytes * _SMALL_WORK_PART <= self._small_work.nbytes
        room = self._small_work if small else self._work
        await room.take(nbytes)
        self._note_peak()
        return Turn(room, nbytes, self._freed)

    @asynccontextmanager
    async def working(self, nbytes: int, what: str) -> AsyncIterator[None]:
        """A turn that ends with the context, where work ends with its waiting."""
        turn = await self.turn(nbytes, what)
        try:
            yield
        finally:
            turn.end()

    async def in_thread(
        self, threads: Executor, nbytes: int, what: str, work: Callable[[], T]
    ) -> T:
        """What ``work`` returns, called in a thread when its turn has come.

        Who is cancelled meanwhile leaves at once; the turn ends when the thread is done with it.

        Raises:
            QuireError: as ``turn`` does; else what ``work`` raises.
        """
        turn = await self.turn(nbytes, what)
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        waiting = [work]  # threads keep a cancelled job in their line: not what it would work on
        del work
        try:
            job = threads.submit(lambda: waiting.pop()())
        except RuntimeError:  # the threads were shut down
            turn.end()
            raise
        # Not asyncio.wrap_future: its two futures hold each other, and the result with them.
        job.add_done_callback(lambda _: _soon(loop, ended.set))
        try:
            await ended.wait()
            return job.result()
        finally:
            # A job that waits for its thread is cancelled with us; one that runs can not be.
            if job.done() or job.cancel():
                waiting.clear()
                turn.end()
            else:
                job.add_done_callback(lambda _: _soon(loop, turn.end))
            del job  # what it raised knows this frame

    def _move(self, before: tuple[Use, int], after: tuple[Use, int], mark: float) -> None:
        """Changes one holding. Raises QuireError where there is no room, and changes nothing."""
        change = after[1] - before[1]
        most = int(self.held_bytes * mark)
        if change > 0 and self._sum + change > most:
            raise self._refusal(after[1], change, most)
        self._held[before[0]] -= before[1]
        self._held[after[0]] += after[1]
        self._sum += change
        if change < 0:
            self._freed(-change)
        else:
            self._note_peak()

    def _refusal(self, wanted: int, change: int, most: int) -> QuireError:
        if wanted > most:
            return QuireError(
                ErrorCode.BODY_TOO_LARGE,
                f"The request takes {format_size(wanted)} of the server's memory, which keeps "
                f"{format_size(most)} for all of them. Send less, or have --api-memory raised.",
            )
        return QuireError(
            ErrorCode.MEMORY_BUDGET,
            f"Requests hold {format_size(self._sum)} of the server's memory and this one needs "
            f"{format_size(change)} more, beyond the {format_size(most)} kept for them. "
            "Try again soon.",
            retry_after=RETRY_AFTER_S,
        )

    def _note_peak(self) -> None:
        now = self._sum + self._work.used + self._small_work.used
        self.peak_bytes = max(self.peak_bytes, now)


class Holding:
    """What one request holds. Used as a context: leaving it gives everything back."""

    def __init__(self, budget: HostBudget, use: Use) -> None:
        self._budget = budget
        self._use = use
        self.nbytes = 0

    def hold(self, nbytes: int, use: Use | None = None) -> None:
        """Holds ``nbytes`` in all from now on, for another use where one is given.

        Raises:
            QuireError: there is no room; what was held before still is.
        """
        wanted = use or self._use
        mark = _MARKS[wanted]
        if wanted is Use.BODIES and nbytes <= SMALL_BODY:
            mark = _SMALL_BODIES_MARK
        self._budget._move((self._use, self.nbytes), (wanted, nbytes), mark)
        self._use, self.nbytes = wanted, nbytes

    def __enter__(self) -> Holding:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.hold(0)


class Turn:
    """Room for one piece of work."""

    def __init__(self, room: _Room, nbytes: int, freed: Callable[[int], None]) -> None:
        self._room = room
        self._nbytes = nbytes
        self._freed = freed

    def end(self) -> None:
        self._room.give_back(self._nbytes)
        self._freed(self._nbytes)


def _soon(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    """From a thread. A loop that has ended counts nothing any more."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(call)


class _Room:
    """Bytes that are taken in the order of asking."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self.used = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def take(self, nbytes: int) -> None:
        if not self._waiting and self.used + nbytes <= self.nbytes:
            self.used += nbytes
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((nbytes, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._waiting = deque(entry for entry in self._waiting if entry[1] is not turn)
                self._wake()
            else:  # it was given as its waiter left
                self.give_back(nbytes)
            raise

    def give_back(self, nbytes: int) -> None:
        self.used -= nbytes
        self._wake()

    def _wake(self) -> None:
        while self._waiting and self.used + self._waiting[0][0] <= self.nbytes:
            nbytes, turn = self._waiting.popleft()
            if not turn.cancelled():
                self.used += nbytes
                turn.set_result(None)
