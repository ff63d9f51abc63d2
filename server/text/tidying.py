"""clean_up_tokenization_spaces: decoded text is closed up before punctuation, as a stream.

transformers replaces over the whole text, one pattern after another. Each is a stage here, behind
the decoder's own: it drops spaces only, so it holds back what may still become its pattern.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from server.text.stages import Segment


class Tidy:
    """Replaces ``pattern`` by itself without its spaces, over the whole text."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.content = pattern.replace(" ", "")

    def start(self, *, first: bool) -> _TidyStream:
        return _TidyStream(self.pattern)


class _TidyStream:
    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._held: list[Segment] = []  # character by character, a beginning of the pattern

    @property
    def holding(self) -> bool:
        return bool(self._held)

    def feed(self, number: int, piece: str) -> Sequence[Segment]:
        given: list[Segment] = []
        for character in piece:
            self._held.append((number, character))
            text = "".join(one for _, one in self._held)
            if text == self._pattern:
                given += [one for one in self._held if one[1] != " "]
                self._held.clear()
            while not self._pattern.startswith("".join(one for _, one in self._held)):
                given.append(self._held.pop(0))
        return _joined(given)

    def flush(self) -> Sequence[Segment]:
        rest, self._held = self._held, []
        return _joined(rest)


def _joined(characters: Sequence[Segment]) -> Sequence[Segment]:
    return [
        (number, "".join(text for _, text in run))
        for number, run in groupby(characters, key=lambda one: one[0])
    ]


TIDYING = tuple(
    Tidy(pattern)
    for pattern in (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")
)
