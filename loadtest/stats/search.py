"""The highest rate at which the objectives hold: bisection over rates, on a scale of ratios.

A measured share of good requests is noisy, so a rate counts as held only if the share wanted lies
below the share's interval or within it with the point above; the answer is told with the last rate
that held and the first that did not, and with whether their intervals part them.
"""

from __future__ import annotations

import math

from loadtest.stats.measures import Estimate
from loadtest.stats.objectives import WANTED_SHARE

CLOSE = 1.1  # rates nearer than this ratio are not told apart
MOST_RUNS = 12


class Search:
    """Ask ``next_rate``, measure, ``note``; until ``next_rate`` is None."""

    def __init__(self, low: float, high: float) -> None:
        self._low, self._high = low, high
        self._held: dict[float, Estimate] = {}
        self._missed: dict[float, Estimate] = {}

    def note(self, rate: float, share: Estimate) -> None:
        side = self._held if share.value >= WANTED_SHARE else self._missed
        side[rate] = share

    @property
    def best(self) -> float | None:
        """The highest rate that held, below every one that did not."""
        worst = min(self._missed, default=math.inf)
        return max((rate for rate in self._held if rate < worst), default=None)

    @property
    def next_rate(self) -> float | None:
        if len(self._held) + len(self._missed) >= MOST_RUNS:
            return None
        missed = min(self._missed, default=None)
        if self.best is None:
            tried = self._low in self._missed
            return None if tried else self._low
        if missed is None:
            return None if self.best >= self._high else min(self._high, self.best * 2)
        return None if missed / self.best <= CLOSE else math.sqrt(missed * self.best)

    @property
    def verdict(self) -> str:
        """One line."""
        best, missed = self.best, min(self._missed, default=None)
        if best is None:
            return f"the objectives hold at no rate down to {self._low:g} requests/s"
        held = self._held[best]
        text = (
            f"the objectives hold up to {best:.3g} requests/s "
            f"({held.value:.1%} good [{held.low:.1%}, {held.high:.1%}])"
        )
        if missed is None:
            return f"{text}, the highest rate asked for"
        over = self._missed[missed]
        text += f", not at {missed:.3g} ({over.value:.1%} good [{over.low:.1%}, {over.high:.1%}])"
        if over.high >= WANTED_SHARE or held.low < WANTED_SHARE:
            text += "; the intervals do not part the two: measure longer for a sharper answer"
        return text
