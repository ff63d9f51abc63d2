"""A client that does not read is given up; one that reads again is not. The clock is the test's."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from server.api.http1.connection import Connection
from server.api.state import HttpLimits

TIMEOUT_S = 60.0


class Timer:
    def __init__(self, at: float, act: Callable[[], object]) -> None:
        self.at, self.act, self.cancelled = at, act, False

    def cancel(self) -> None:
        self.cancelled = True


class Loop:
    """What a connection's writing uses of an event loop; ``pass_time`` runs what is due."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[Timer] = []

    def call_later(self, seconds: float, act: Callable[[], object]) -> Timer:
        self.timers.append(Timer(self.now + seconds, act))
        return self.timers[-1]

    def create_future(self) -> Any:
        return SimpleNamespace(set_result=lambda _: None)

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        due = [timer for timer in self.timers if timer.at <= self.now]
        self.timers = [timer for timer in self.timers if timer.at > self.now]
        for timer in due:
            if not timer.cancelled:
                timer.act()


@pytest.fixture
def loop() -> Loop:
    return Loop()


@pytest.fixture
def aborted() -> list[float]:
    return []


@pytest.fixture
def connection(loop: Loop, aborted: list[float]) -> Connection:
    shared: Any = SimpleNamespace(loop=loop, limits=HttpLimits(send_timeout_s=TIMEOUT_S))
    it = Connection(shared)
    transport: Any = SimpleNamespace(
        abort=lambda: aborted.append(loop.now), is_closing=lambda: False
    )
    it._transport = transport
    return it


def test_who_does_not_read_is_given_up_when_the_time_is_over(
    connection: Connection, loop: Loop, aborted: list[float]
) -> None:
    connection.pause_writing()
    loop.pass_time(TIMEOUT_S - 1)
    assert aborted == []
    loop.pass_time(1)
    assert aborted == [TIMEOUT_S]


def test_who_reads_again_in_time_is_never_given_up_for_it(
    connection: Connection, loop: Loop, aborted: list[float]
) -> None:
    connection.pause_writing()
    loop.pass_time(TIMEOUT_S - 1)
    connection.resume_writing()
    loop.pass_time(10 * TIMEOUT_S)
    assert aborted == []


def test_each_pause_has_the_whole_time(
    connection: Connection, loop: Loop, aborted: list[float]
) -> None:
    for _ in range(5):
        connection.pause_writing()
        loop.pass_time(TIMEOUT_S - 1)
        connection.resume_writing()
    assert aborted == []
    connection.pause_writing()
    loop.pass_time(TIMEOUT_S)
    assert aborted == [loop.now]
