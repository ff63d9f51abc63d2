"""Publishes where the engine stands: its gauges, and the latest reading of its memory.

The engine's loop calls it after each step and each idle tick. What it costs is bounded by what it
measures of itself, on any machine and at any size of a step:

    gauges     at most once in 20 ms and 1/400 of the time while there is work; at every call while
               there is none, so that what is seen after the last answer is how things are
    a reading  at most once in 250 ms and 1/200 of the time (it walks the page tables)

The split of the KV pool follows the gauges, not the readings: blocks and bytes agree at any moment.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Protocol

from server.engine.gauges import EngineGauges
from server.ipc.engine_info import gauge_values
from server.ipc.gauges import GaugeBlock
from server.memory.accounting.accountant import Accountant
from server.memory.accounting.reading import MemoryReading
from server.memory.kinds import MemoryKind
from server.units import format_size
from server.worker.memory_accounting import kv_use

log = logging.getLogger("quire.memory")

_UNACCOUNTED_BYTES = 8 * 2**20  # the alarm's bound is the larger of this
_UNACCOUNTED_SHARE = 0.03  # and this share of the resident set


class Core(Protocol):
    """The part of the engine core that is looked at (server.engine.core.EngineCore)."""

    @property
    def has_work(self) -> bool: ...

    def gauges(self) -> EngineGauges: ...


class Pace:
    """Says when something is due again, from what it cost.

    Args:
        pause_s: at least so long from one start to the next.
        one_in: at most this share of the time goes into it: 1 / ``one_in``.
    """

    def __init__(self, pause_s: float, one_in: int) -> None:
        self._pause_s = pause_s
        self._one_in = one_in
        self._next = float("-inf")

    def is_due(self, now: float) -> bool:
        return now >= self._next

    def note(self, now: float, cost_s: float) -> None:
        """It was done at ``now`` and took ``cost_s`` of processor time."""
        self._next = now + max(self._pause_s, self._one_in * cost_s)


class GaugePublisher:
    """
    Args:
        clock: seconds, monotonic.
        cost: seconds of this thread's processor time: what publishing takes, and not what others
            make it wait.
    """

    def __init__(
        self,
        core: Core,
        accountant: Accountant,
        block: GaugeBlock,
        *,
        clock: Callable[[], float] = time.monotonic,
        cost: Callable[[], float] = time.thread_time,
    ) -> None:
        self._core = core
        self._accountant = accountant
        self._block = block
        self._clock = clock
        self._cost = cost
        self._reading: MemoryReading | None = None
        self._alarm = UnaccountedAlarm()
        self._gauges_pace = Pace(0.02, 400)
        self._reading_pace = Pace(0.25, 200)

    def __call__(self) -> None:
        now = self._clock()
        if self._core.has_work and not self._gauges_pace.is_due(now):
            return
        reading = self._reading
        if reading is None or self._reading_pace.is_due(now):
            reading = self._reading = self._read(now)
        began = self._cost()
        self._write(reading)
        self._gauges_pace.note(now, self._cost() - began)

    def _read(self, now: float) -> MemoryReading:
        began = self._cost()
        reading = self._accountant.read()
        self._alarm(reading.kinds[MemoryKind.UNACCOUNTED].now, reading.resident)
        self._reading_pace.note(now, self._cost() - began)
        return reading

    def _write(self, reading: MemoryReading) -> None:
        gauges = self._core.gauges()
        kv_bytes = reading.kinds[MemoryKind.KV_CACHE].now
        split = self._accountant.split_kv(kv_use(gauges), kv_bytes)
        latest = reading.with_parts(MemoryKind.KV_CACHE, split)
        self._block.write(gauge_values(gauges, latest))


class UnaccountedAlarm:
    """One warning when unaccounted memory exceeds its bound, and one when it is back."""

    def __init__(self) -> None:
        self._is_raised = False

    def __call__(self, unaccounted: int, resident: int) -> None:
        """Bytes, of one reading."""
        bound = max(_UNACCOUNTED_BYTES, _UNACCOUNTED_SHARE * resident)
        if (abs(unaccounted) > bound) == self._is_raised:
            return
        self._is_raised = not self._is_raised
        log.warning(
            "unaccounted memory is %s of %s resident: %s the bound of %s",
            format_size(unaccounted),
            format_size(resident),
            "above" if self._is_raised else "below",
            format_size(bound),
        )
