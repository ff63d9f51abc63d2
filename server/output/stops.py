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

from collections.abc import Sequence


class _Automaton:
    """Counts how many characters of ``pattern`` the text seen so far ends in."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.matched = 0
        self._fallback = [0] * len(pattern)
        length = 0
        for index in range(1, len(pattern)):
            length = self._extend(length, pattern[index])
            self._fallback[index] = length

    def _extend(self, length: int, character: str) -> int:
        while length and (length == len(self.pattern) or self.pattern[length] != character):
            length = self._fallback[length - 1]
        return length + 1 if self.pattern[length] == character else 0

    def step(self, character: str) -> bool:
        self.matched = self._extend(self.matched, character)
        return self.matched == len(self.pattern)

    def pass_over(self) -> None:
        """A complete match was no stop: only what may begin the next one counts on."""
        self.matched = self._fallback[-1]


class StopMatcher:
    """Feeds text through; gives what can no longer be part of a stop string."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._automata = [_Automaton(stop) for stop in sorted(stops, key=len, reverse=True)]
        self._held = ""
        self.stop: str | None = None

    def feed(self, text: str, *, armed: bool = True) -> str:
        """The text that is now certain. Sets ``stop`` once a stop string is complete, after which
        nothing more is to be fed. ``armed`` False lets a stop string pass as text."""
        if not self._automata:
            return text
        for index, character in enumerate(text):
            complete = [one for one in self._automata if one.step(character)]
            if complete and armed:
                self.stop = complete[0].pattern
                seen = self._held + text[: index + 1]
                self._held = ""
                return seen[: len(seen) - len(self.stop)]
            for one in complete:
                one.pass_over()
        seen = self._held + text
        keep = max(one.matched for one in self._automata)
        self._held = seen[len(seen) - keep :]
        return seen[: len(seen) - keep]

    def flush(self) -> str:
        """What was held back, now that no more text comes."""
        held, self._held = self._held, ""
        return held
