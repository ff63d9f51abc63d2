"""Stop strings over text that arrives in pieces: found wherever the pieces were cut.

One Knuth-Morris-Pratt automaton a stop string (Knuth, Morris and Pratt 1977) says after each
character how much of the string the text ends in. The longest such ending is held back:

    text so far   ......  a b c | d e        stop = "d e f"
    given         ......  a b c |
    held back                     d e        may still become the stop string

The match that is complete first wins; of several complete at one character, the longest. So the
result does not depend on how the text was cut into tokens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence


class _Pattern:
    """A stop string, and for each of its beginnings the longest shorter one that ends it."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.fallback = [0] * len(text)
        length = 0
        for index in range(1, len(text)):
            length = self.extend(length, text[index])
            self.fallback[index] = length

    def extend(self, length: int, character: str) -> int:
        while length and (length == len(self.text) or self.text[length] != character):
            length = self.fallback[length - 1]
        return length + 1 if self.text[length] == character else 0


class StopStrings:
    """Prepared once for all choices of a request: what is kept here grows with the strings, and
    what each choice keeps of its own is one number a string."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.patterns = [_Pattern(stop) for stop in sorted(stops, key=len, reverse=True)]
        self.first = re.compile("|".join(re.escape(stop[0]) for stop in stops))

    @classmethod
    def of(cls, stops: StopStrings | Sequence[str]) -> StopStrings:
        return stops if isinstance(stops, StopStrings) else cls(stops)


class StopMatcher:
    """Feeds text through; gives what can no longer be part of a stop string.

    A character costs at most two comparisons a stop string, as a mean over the text; text that can
    begin none of them, while none has begun, costs one search for their first characters.
    """

    def __init__(self, stops: StopStrings | Sequence[str]) -> None:
        self._stops = StopStrings.of(stops)
        self._matched = [0] * len(self._stops.patterns)  # characters that the text ends in
        self._held = ""
        self.stop: str | None = None

    def feed(self, text: str, *, armed: bool = True) -> str:
        """The text that is now certain. Sets ``stop`` once a stop string is complete, after which
        nothing more is to be fed. ``armed`` False lets a stop string pass as text."""
        start = self._begins(text)
        if start is None:
            return text
        for index in range(start, len(text)):
            complete = self._step(text[index])
            if complete and armed:
                self.stop = self._stops.patterns[complete[0]].text
                seen = self._held + text[: index + 1]
                self._held = ""
                return seen[: len(seen) - len(self.stop)]
            for one in complete:  # no stop: only what may begin the next one counts on
                self._matched[one] = self._stops.patterns[one].fallback[-1]
        seen = self._held + text
        keep = max(self._matched)
        self._held = seen[len(seen) - keep :]
        return seen[: len(seen) - keep]

    def _begins(self, text: str) -> int | None:
        """Where in ``text`` the first character lies that matters; None where none does."""
        if self._held:
            return 0
        if not self._matched:
            return None
        found = self._stops.first.search(text)
        return None if found is None else found.start()

    def _step(self, character: str) -> list[int]:
        """The stop strings that ``character`` completes, the longest first."""
        complete = []
        for one, pattern in enumerate(self._stops.patterns):
            matched = pattern.extend(self._matched[one], character)
            self._matched[one] = matched
            if matched == len(pattern.text):
                complete.append(one)
        return complete

    def flush(self) -> str:
        """What was held back, now that no more text comes."""
        held, self._held = self._held, ""
        return held
