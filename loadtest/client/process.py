"""How busy this client was: its event loop's lag and its CPU, sampled while a run is under way.

A lag is how much later than asked a timer fires; whatever it is, every time measured may be late by
as much. A loop that stands still is sampled as if it had not: its whole halt counts, and not one
sample of it. Past the bounds below the run says so: that the client itself was the bottleneck, or,
where it was late and yet used little of a core, that the machine was busy with something else.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass

_PERIOD_S = 0.007  # divides no round period of a server's steps: it meets them at every phase
LAG_BOUND_S = 0.02  # at the 99th percentile
CPU_BOUND = 0.9  # of one core: this client is one thread


@dataclass(frozen=True, slots=True)
class ClientLoad:
    """``cpu`` is seconds of CPU per second. Lags are seconds."""

    cpu: float
    lag_p50: float
    lag_p99: float
    lag_max: float

    @property
    def complaint(self) -> str | None:
        """Why the figures of this run are not the server's alone, or None."""
        late = f"this client's event loop was {self.lag_p99 * 1e3:.0f} ms late (p99)"
        if self.cpu > CPU_BOUND:
            return f"THE CLIENT WAS THE BOTTLENECK: this client used {self.cpu:.0%} of its core"
        if self.lag_p99 <= LAG_BOUND_S:
            return None
        if self.cpu < CPU_BOUND / 2:
            return (
                f"THE MACHINE WAS BUSY: {late} and used {self.cpu:.0%} of a core, so something "
                "else had the cores; every time may be late by as much"
            )
        return f"THE CLIENT WAS THE BOTTLENECK: {late} on {self.cpu:.0%} of a core"


class LoadMeter:
    """``async with LoadMeter() as meter: ...``, then ``meter.load``."""

    def __init__(self) -> None:
        self._lags: list[float] = []

    async def __aenter__(self) -> LoadMeter:
        self._began, self._cpu_began = time.perf_counter(), time.process_time()
        self._task = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *exception: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._took = time.perf_counter() - self._began
        self._cpu = time.process_time() - self._cpu_began

    @property
    def lag(self) -> float:
        """The latest."""
        return self._lags[-1] if self._lags else 0.0

    @property
    def load(self) -> ClientLoad:
        lags = sorted(self._lags) or [0.0]
        last = len(lags) - 1
        return ClientLoad(
            cpu=self._cpu / max(self._took, 1e-9),
            lag_p50=lags[last // 2],
            lag_p99=lags[round(last * 0.99)],
            lag_max=lags[last],
        )

    async def _watch(self) -> None:
        wanted = time.perf_counter()
        while True:  # a timer that a halt has swallowed is waited for all the same, and was late
            wanted += _PERIOD_S
            await asyncio.sleep(wanted - time.perf_counter())
            self._lags.append(max(0.0, time.perf_counter() - wanted))


# Keeps Python's garbage collector from standing in the way of a measurement.

_NEVER = 1_000_000_000


@contextlib.contextmanager
def no_full_collections() -> Iterator[None]:
    """Young objects are still collected, which takes microseconds; a full collection walks all that
    a run has kept, tens of milliseconds in which nothing gets its true time. It waits for the end.
    What a caller has frozen stays frozen.
    """
    young, middle, old = gc.get_threshold()
    frozen_before = gc.get_freeze_count() > 0
    gc.collect()
    gc.freeze()
    gc.set_threshold(young, middle, _NEVER)
    try:
        yield
    finally:
        gc.set_threshold(young, middle, old)
        if not frozen_before:
            gc.unfreeze()


# What the system allows this process.


def raise_file_limit() -> int:
    """As many open files, and so connections, as may be had without more rights; returns it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
