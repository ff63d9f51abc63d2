"""A progress display for loading: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import TextIO

_BAR_WIDTH = 30
_BAR_SECONDS = 0.1  # between redraws
_LINE_SECONDS = 5.0  # between plain lines
_RATE_SECONDS = 5.0  # that the rate is of
_SAMPLE_SECONDS = 0.1  # between two samples of it: their number is bounded


class RecentRate:
    """How fast it goes: bytes a second over the last few seconds, a pause included.

    A mean since the start would go on promising the page cache's speed long after a load has
    reached the disk.
    """

    def __init__(self, now: float) -> None:
        self._samples = deque([(now, 0)])  # (when, bytes done), the oldest first

    def add(self, now: float, done: int) -> None:
        if now - self._samples[-1][0] >= _SAMPLE_SECONDS:
            self._samples.append((now, done))
        while len(self._samples) > 1 and now - self._samples[1][0] >= _RATE_SECONDS:
            self._samples.popleft()

    def text(self, now: float, done: int, total: int) -> str:
        """As ``50 % of 4.00 GiB at 2.00 GiB/s, 1.0 s left``; no time where none is known."""
        since, before = self._samples[0]
        rate = (done - before) / (now - since) if now > since else 0.0
        text = f"{100 * done // max(total, 1):3d} % of {_bytes(total)} at {_bytes(rate)}/s"
        return f"{text}, {_time((total - done) / rate)} left" if rate > 0 else text


class ProgressBar:
    """Call it with bytes done and bytes to do; the last call (all done) ends the display, and tells
    the mean of the whole.

    Plain lines come at most every five seconds, so that a small model loads in silence but for
    its last line.
    """

    def __init__(
        self,
        stream: TextIO,
        *,
        label: str = "loading",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream
        self._label = label
        self._clock = clock
        self._started = clock()
        self._shown = self._started
        self._rate = RecentRate(self._started)
        self._terminal = stream.isatty()
        self._ended = False
        self._width = 0  # of what the terminal shows, to be written over

    def __call__(self, done: int, total: int) -> None:
        now = self._clock()
        last = done >= total
        self._rate.add(now, done)
        pause = _BAR_SECONDS if self._terminal else _LINE_SECONDS
        if self._ended or (not last and now - self._shown < pause):
            return
        self._shown = now
        self._ended = last
        seconds = now - self._started
        text = whole_text(total, seconds) if last else self._rate.text(now, done, total)
        self._stream.write(self._drawn(text, done, total) if self._terminal else self._line(text))
        self._stream.flush()

    def _line(self, text: str) -> str:
        return f"{self._label} {text}\n"

    def _drawn(self, text: str, done: int, total: int) -> str:
        filled = _BAR_WIDTH * done // max(total, 1)
        bar = "#" * filled + "-" * (_BAR_WIDTH - filled)
        shown = f"{self._label} [{bar}] {text}"
        padding = " " * (self._width - len(shown))
        self._width = len(shown)
        return f"\r{shown}{padding}" + ("\n" if self._ended else "")


def whole_text(total: int, seconds: float) -> str:
    """What is said when all of ``total`` bytes are there."""
    rate = total / seconds if seconds > 0 else 0.0
    return f"100 % of {_bytes(total)} in {_time(seconds)}, {_bytes(rate)}/s"


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def _time(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{seconds / 3600:.1f} h"
