"""What has ended is forgotten at once, and does not wait for Python's collector."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from server.engine.sequence import Sequence
from tests.engine.engine_story import Story, prompt


@pytest.fixture
def without_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def num_sequences() -> int:
    return sum(type(one) is Sequence for one in gc.get_objects())


def test_sequences_of_ended_requests_are_gone_without_a_collection(without_collector: None) -> None:
    story = Story()
    before = num_sequences()
    for name in "abc":
        story.ask(name, tokens=prompt(9), n=2)
    story.run()
    story.ask("left", tokens=prompt(9))
    story.core.abort(["left"])
    story.run()
    assert not story.state.requests
    assert num_sequences() == before
