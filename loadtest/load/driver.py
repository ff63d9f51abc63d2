"""Sends a workload by its arrivals and gathers what became of each request.

An open schedule is kept by one task that sleeps until a request is due and starts it, whatever the
others do; the next body is made before the sleep, so that making it delays no request. A closed
loop is as many tasks as users, who come a few at a time. Times are seconds from the start.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass

from loadtest.client.connection import Address, HttpClient, request_head
from loadtest.client.exchange import Exchange
from loadtest.load.result_reader import ResultReader
from loadtest.stats.records import RequestRecord, read_in_steps
from loadtest.workload.arrivals import Arrivals, ClosedLoop
from loadtest.workload.requests import Job, Workload

Hear = Callable[[RequestRecord], None]
_USERS_AT_ONCE = 8  # whose first requests are made in one turn of the loop


@dataclass(frozen=True, slots=True)
class Alteration:
    """What chaos does to one request."""

    kind: str = "normal"
    cancel_after: int | None = None
    pause_s: float = 0.0
    content: bytes | None = None  # sent instead of the body


Alter = Callable[[Job], Alteration]


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go, and with which further headers."""

    address: Address
    path: str
    headers: dict[str, str]


@dataclass(frozen=True, slots=True)
class Bounds:
    """When no more requests are sent. ``grace_s`` is how long those under way may take then."""

    seconds: float | None
    requests: int | None
    grace_s: float = 60.0
    max_in_flight: int = 20_000


class Driver:
    """Runs once."""

    def __init__(
        self, client: HttpClient, target: Target, workload: Workload, alter: Alter, on_record: Hear
    ) -> None:
        self._client = client
        self._target = target
        self._workload = workload
        self._alter = alter
        self._hear = on_record
        self._harvest = ResultReader(on_record)
        self._tasks: set[asyncio.Task[None]] = set()
        self._ask_until = math.inf
        self.start = 0.0  # perf_counter of second 0
        self.in_flight = 0
        self.not_sent = 0  # due while max_in_flight were under way
        self.sent_until: float | None = None  # from then on nothing more was asked for

    async def run(self, arrivals: Arrivals | ClosedLoop, bounds: Bounds, seed: int) -> None:
        """Sends until the bounds are reached; returns when every answer has ended or was given up.

        On cancellation the rest is recorded as cancelled. ``finish`` then tells what is still to
        be read of the last answers.
        """
        self.start = time.perf_counter()
        self._ask_until = math.inf if bounds.seconds is None else bounds.seconds
        try:
            if isinstance(arrivals, ClosedLoop):
                await self._closed(arrivals.concurrency, bounds)
            else:
                await self._open(arrivals.times(seed), bounds)
                await self._drain(bounds.grace_s)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._client.close()

    def finish(self) -> None:
        """Every request that was sent has been heard of when this returns."""
        self._harvest.finish()

    def now(self) -> float:
        """0 until it has begun."""
        return time.perf_counter() - self.start if self.start else 0.0

    async def _open(self, times: Iterator[float], bounds: Bounds) -> None:
        jobs = self._workload.jobs()
        for number, (due, job) in enumerate(zip(times, jobs, strict=False)):
            if bounds.requests is not None and number >= bounds.requests:
                break
            exchange, kind = self._exchange(job)
            await self._sleep_until(min(due, self._ask_until))
            if due > self._ask_until:
                break
            if self.in_flight >= bounds.max_in_flight:
                self.not_sent += 1
                continue
            self._spawn(self._conversation(job, exchange, kind, due))
        self._stop_asking()

    async def _closed(self, users: int, bounds: Bounds) -> None:
        numbers = itertools.count()
        limit = bounds.requests

        async def user() -> None:
            while self.now() < self._ask_until:
                number = next(numbers)
                if limit is not None and number >= limit:
                    break
                job = self._workload.job(number)
                exchange, kind = self._exchange(job)
                await self._conversation(job, exchange, kind, None)
            self._stop_asking()

        for number in range(1, users + 1):
            self._spawn(user())
            if number % _USERS_AT_ONCE == 0:
                await asyncio.sleep(0)  # who has answers to read comes first
        if self._tasks:
            left = self._ask_until - self.now() + bounds.grace_s
            await asyncio.wait(self._tasks, timeout=None if math.isinf(left) else left)

    def stop(self) -> None:
        """Asks for nothing more; what is under way may end."""
        self._ask_until = self.now()

    def _stop_asking(self) -> None:
        if self.sent_until is None:
            self.sent_until = self.now()

    async def _drain(self, grace_s: float) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace_s)

    async def _conversation(
        self, job: Job, exchange: Exchange, kind: str, due: float | None
    ) -> None:
        """One request, and where it is a conversation its further turns, while time lasts."""
        read = await self._send(job, exchange, kind, due)
        while job.turns_left and self.now() < self._ask_until:
            record = await read
            if not record.ok:
                break
            job = self._workload.next_turn(job, record.text)
            exchange, kind = self._exchange(job)
            read = await self._send(job, exchange, kind, None)

    async def _send(
        self, job: Job, exchange: Exchange, kind: str, due: float | None
    ) -> asyncio.Future[RequestRecord]:
        """Until the exchange has ended; its record comes when there is time to read it."""
        intended = self.now() if due is None else due
        self.in_flight += 1
        try:
            await self._client.send(exchange)
        finally:
            self.in_flight -= 1
            reading = read_in_steps(
                exchange, index=job.index, start=self.start, intended=intended, kind=kind
            )
            read = self._harvest.add(reading)
        return read

    def _exchange(self, job: Job) -> tuple[Exchange, str]:
        change = self._alter(job)
        content = change.content
        if content is None:
            content = json.dumps(job.body, separators=(",", ":")).encode()
        target = self._target
        head = request_head(target.address, "POST", target.path, len(content), target.headers)
        exchange = Exchange(head, content, cancel_after=change.cancel_after, pause_s=change.pause_s)
        return exchange, change.kind

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _sleep_until(self, second: float) -> None:
        left = self.start + second - time.perf_counter()
        if left > 0:
            await asyncio.sleep(left)
