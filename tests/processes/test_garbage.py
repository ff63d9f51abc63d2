"""What is made to last is not collected, and what is made after it is."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from server.garbage import lasting


class Node:
    def __init__(self) -> None:
        self.own = self  # a cycle, which counting references does not free


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    assert gc.isenabled()
    yield
    gc.enable()
    gc.unfreeze()


def test_nothing_is_collected_meanwhile_and_later_garbage_is() -> None:
    with lasting():
        assert not gc.isenabled()
        kept = weakref.ref(Node())
    assert gc.isenabled()
    later = weakref.ref(Node())
    gc.collect()
    assert kept() is not None
    assert later() is None
    gc.unfreeze()
    gc.collect()
    assert kept() is None


def test_after_an_error_garbage_is_collected_as_before() -> None:
    with pytest.raises(ValueError), lasting():
        lost = weakref.ref(Node())
        raise ValueError
    assert gc.isenabled()
    gc.collect()
    assert lost() is None


def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    with lasting():
        pass
    assert not gc.isenabled()
    with pytest.raises(ValueError), lasting():
        raise ValueError
    assert not gc.isenabled()
