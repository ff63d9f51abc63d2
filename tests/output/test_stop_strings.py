"""Stop strings: found wherever the text was cut, and never seen by the client."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from server.output.stops import StopMatcher, StopStrings


def cut(text: str, places: Sequence[int]) -> list[str]:
    edges = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[a:b] for a, b in pairwise(edges)]


def run(pieces: Sequence[str], stops: Sequence[str]) -> tuple[list[str], str | None]:
    matcher = StopMatcher(stops)
    found: list[str] = []
    for piece in pieces:
        found.append(matcher.feed(piece))
        if matcher.stop is not None:
            return found, matcher.stop
    return [*found, matcher.flush()], None


def naive(text: str, stops: Sequence[str]) -> tuple[str, str | None]:
    """The match that ends first; of those, the longest."""
    for end in range(len(text) + 1):
        matches = [stop for stop in stops if text[:end].endswith(stop)]
        if matches:
            stop = max(matches, key=len)
            return text[: end - len(stop)], stop
    return text, None


letters = st.text("ab深", max_size=14)
stop_lists = st.lists(st.text("ab深", min_size=1, max_size=5), max_size=6, unique=True)


@settings(max_examples=1500, deadline=None)
@example(text="aab", stops=["ab", "b"], places=[1, 2])
@example(text="abababb", stops=["ababb"], places=[4])
@given(text=letters, stops=stop_lists, places=st.lists(st.integers(0, 20), max_size=8))
def test_the_result_depends_on_the_text_alone(
    text: str, stops: list[str], places: list[int]
) -> None:
    pieces, stop = run(cut(text, places), stops)
    assert ("".join(pieces), stop) == naive(text, stops)


def test_every_split_of_a_multibyte_text() -> None:
    text, stop = "ab深度学习是c", "学习"
    for first in range(len(text)):
        for second in range(first, len(text)):
            pieces, found = run([text[:first], text[first:second], text[second:]], [stop])
            assert found == stop
            assert "".join(pieces) == "ab深度"


def test_only_what_may_become_a_stop_string_is_held_back() -> None:
    matcher = StopMatcher(["END", "深度学"])
    assert matcher.feed("text E") == "text "
    assert matcher.feed("N") == ""
    assert matcher.feed("d深") == "ENd"
    assert matcher.feed("度E") == "深度"
    assert matcher.flush() == "E"
    assert matcher.stop is None


def test_a_match_before_it_counts_is_text_but_may_begin_another() -> None:
    matcher = StopMatcher(["aa"])
    assert matcher.feed("aa", armed=False) == "a"
    assert matcher.feed("a") == ""
    assert matcher.stop == "aa"


class CountedText(str):
    """A stop string that counts how often one of its characters is looked at."""

    looks = 0

    def __getitem__(self, index: Any) -> str:
        CountedText.looks += 1
        return super().__getitem__(index)


def test_what_stop_strings_cost_is_bounded_whatever_they_are() -> None:
    stops = StopStrings(["a" * (999 - index) + "b" for index in range(16)])
    for pattern in stops.patterns:
        pattern.text = CountedText(pattern.text)
    CountedText.looks = 0
    matchers = [StopMatcher(stops) for _ in range(4)]
    assert CountedText.looks == 0  # prepared once, for every choice of a request
    text = ("a" * 700 + "c") * 10
    for matcher in matchers:
        assert "".join(matcher.feed(piece) for piece in cut(text, range(0, 7000, 7))) == text
    looks = CountedText.looks
    assert 0 < looks <= 3 * len(text) * len(stops.patterns) * len(matchers)
    for matcher in matchers:
        assert matcher.feed("no letter of theirs".replace("a", "o")) == "no letter of theirs"
    assert CountedText.looks == looks
