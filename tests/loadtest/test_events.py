"""Server-sent events, cut at every place where a network may cut them."""

from __future__ import annotations

import random

import pytest

from loadtest.client.exchange import SSEParser

STREAM = b'data: {"a": 1}\n\n: a comment\nevent: x\ndata: two\ndata: lines\n\ndata:[DONE]\n\n'
EVENTS = [b'{"a": 1}', b"two\nlines", b"[DONE]"]


@pytest.mark.parametrize("ending", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("seed", range(20))
def test_any_cutting_gives_the_same_events(ending: bytes, seed: int) -> None:
    stream, draw, cutter, found = (
        STREAM.replace(b"\n", ending),
        random.Random(seed),
        SSEParser(),
        [],
    )
    while stream:
        size = draw.randint(1, 9)
        found += cutter.feed(stream[:size])
        stream = stream[size:]
    # A last CR may be half of a CRLF: it ends its line when the next byte comes.
    found += cutter.feed(b"\n") if ending == b"\r" else []
    assert found == EVENTS


def test_a_whole_event_after_half_of_one_belongs_to_it() -> None:
    """What looks like one event is none where something is open still."""
    cutter = SSEParser()
    assert cutter.feed(b"data: one\n") == []
    assert cutter.feed(b"data: two\n\n") == [b"one\ntwo"]
    assert cutter.feed(b"data: three") == []
    assert cutter.feed(b"data: four\n\n") == [b"threedata: four"]
    assert cutter.feed(b"data: five\n\n") == [b"five"]


def test_lines_without_data_make_no_event() -> None:
    assert SSEParser().feed(b"\n\n: ping\n\nretry: 5\n\n") == []
