"""A progress display for loading: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TextIO

_BAR_WIDTH = 30
_BAR_SECONDS = 0.1  # between redraws
_LINE_SECONDS = 5.0  # between plain lines


class ProgressBar:
    """Call it with bytes done and bytes to do; the last call (all done) ends the display.

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
        self._terminal = stream.isatty()
        self._ended = False

    def __call__(self, done: int, total: int) -> None:
        now = self._clock()
        last = done >= total
        pause = _BAR_SECONDS if self._terminal else _LINE_SECONDS
        if self._ended or (not last and now - self._shown < pause):
            return
        self._shown = now
        self._ended = last
        text = self._text(done, total, now - self._started)
        if self._terminal:
            filled = _BAR_WIDTH * done // max(total, 1)
            bar = "#" * filled + "-" * (_BAR_WIDTH - filled)
            text = f"\r{self._label} [{bar}] {text}" + ("\n" if last else "")
        else:
            text = f"{self._label} {text}\n"
        self._stream.write(text)
        self._stream.flush()

    def _text(self, done: int, total: int, seconds: float) -> str:
        rate = done / seconds if seconds > 0 else 0.0
        percent = 100 * done // max(total, 1)
        return f"{percent:3d} % of {_bytes(total)} at {_bytes(rate)}/s"


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"
