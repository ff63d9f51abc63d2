"""Server-sent events, cut at every place where a network may cut them."""

from __future__ import annotations

import random

import pytest

from loadtest.events import EventCutter

STREAM = b'data: {"a": 1}\n\n: a comment\nevent: x\ndata: two\ndata: lines\n\ndata:[DONE]\n\n'
EVENTS = [b'{"a": 1}', b"two\nlines", b"[DONE]"]


@pytest.mark.parametrize("ending", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("seed", range(20))
def test_any_cutting_gives_the_same_events(ending: bytes, seed: int) -> None:
    stream, draw, cutter, found = (
        STREAM.replace(b"\n", ending),
        random.Random(seed),
        EventCutter(),
        [],
    )
    while stream:
        size = draw.randint(1, 9)
        found += cutter.feed(stream[:size])
        stream = stream[size:]
    # A last CR may be half of a CRLF: it ends its line when the next byte comes.
    found += cutter.feed(b"\n") if ending == b"\r" else []
    assert found == EVENTS
    assert cutter.is_between_events


def test_an_event_that_has_begun_is_seen() -> None:
    cutter = EventCutter()
    assert cutter.feed(b"data: half") == []
    assert not cutter.is_between_events


def test_lines_without_data_make_no_event() -> None:
    assert EventCutter().feed(b"\n\n: ping\n\nretry: 5\n\n") == []
