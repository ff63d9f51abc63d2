"""Accepting where it cannot be done: what is closed, logged and tried again, and what is left."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable
from typing import Any

import pytest

from server.api.http1 import accept
from server.api.http1.accept import PAUSE_S, REPORT_S, Acceptor
from server.startup.listener import bind


async def test_a_connection_that_fails_after_the_end_does_not_begin_accepting_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It had been accepted in the turn before, and was on its way to a protocol."""
    loop, failed = asyncio.get_running_loop(), asyncio.Event()
    unhandled: list[str] = []
    loop.set_exception_handler(lambda _, context: unhandled.append(context["message"]))

    async def no_memory(*_: object) -> None:
        listener.close()  # as the server does, once it has told the acceptor
        failed.set()
        raise OSError(errno.ENOMEM, "no memory")

    monkeypatch.setattr(loop, "connect_accepted_socket", no_memory)
    listener = bind("127.0.0.1", 0)
    acceptor = Acceptor(loop, listener, asyncio.Protocol, lambda: False)
    with socket.create_connection(listener.getsockname()):
        while not acceptor._tasks:
            await asyncio.sleep(0)
        acceptor.close()
        await failed.wait()
        while acceptor._tasks:
            await asyncio.sleep(0)
    assert acceptor._pause is None
    assert unhandled == []


class Listener:
    """Has the errors ``fails`` for who accepts, then nobody who waits."""

    def __init__(self, *fails: int) -> None:
        self._fails = list(fails)

    def setblocking(self, on: bool) -> None:
        assert not on

    def accept(self) -> Any:
        raise OSError(self._fails.pop(0), "no") if self._fails else BlockingIOError()


class Loop:
    """What an acceptor asks of its loop. ``ready`` is what is called while somebody waits."""

    def __init__(self) -> None:
        self.ready: Callable[[], None] | None = None
        self.later: list[tuple[float, Callable[[], None]]] = []

    def add_reader(self, _: object, call: Callable[[], None]) -> None:
        self.ready = call

    def remove_reader(self, _: object) -> None:
        self.ready = None

    def call_later(self, seconds: float, call: Callable[[], None]) -> object:
        self.later.append((seconds, call))
        return object()


def accepting(*fails: int, closes: bool) -> tuple[Loop, list[bool]]:
    """A loop in which one turn has accepted, and each time that another connection was to go."""
    loop, asked = Loop(), []

    def on_shortage() -> bool:
        asked.append(True)
        return closes

    Acceptor(loop, Listener(*fails), asyncio.Protocol, on_shortage)  # type: ignore[arg-type]
    assert loop.ready is not None
    loop.ready()
    return loop, asked


@pytest.mark.parametrize("fails", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_without_descriptors_it_is_tried_again_after_a_pause(fails: int) -> None:
    """The listener stays readable meanwhile: who went on listening would do nothing else."""
    loop, asked = accepting(fails, closes=False)
    assert asked == [True]
    assert loop.ready is None
    ((seconds, resume),) = loop.later
    assert seconds == PAUSE_S
    resume()
    assert loop.ready is not None


def test_where_another_connection_was_closed_it_is_tried_again_at_once() -> None:
    loop, asked = accepting(errno.EMFILE, closes=True)
    assert asked == [True]
    assert loop.ready is not None and not loop.later


def test_a_client_that_has_gone_again_costs_nobody_a_connection() -> None:
    loop, asked = accepting(errno.ECONNABORTED, errno.EPROTO, closes=True)
    assert asked == [] and loop.ready is not None


def test_a_shortage_is_told_once_a_minute(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = [100.0]
    monkeypatch.setattr(accept.time, "monotonic", lambda: now[0])
    loop = Loop()
    fails = [errno.EMFILE] * 4
    Acceptor(loop, Listener(*fails), asyncio.Protocol, lambda: True)  # type: ignore[arg-type]
    with caplog.at_level(logging.WARNING, "quire.api"):
        for seconds in (0.0, 1.0, REPORT_S - 1.5, 0.5):
            now[0] += seconds
            assert loop.ready is not None
            loop.ready()
    assert [record.args[0] for record in caplog.records if record.args] == [1, 4]
