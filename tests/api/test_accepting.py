"""Accepting where it cannot be done: what is left behind when the server stops meanwhile."""

from __future__ import annotations

import asyncio
import errno
import socket

import pytest

from server.api.http1.accept import Acceptor
from server.listener import bind


def test_a_connection_that_fails_after_the_end_does_not_begin_accepting_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It had been accepted in the turn before, and was on its way to a protocol."""

    async def main() -> list[str]:
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
        return unhandled

    assert asyncio.run(main()) == []
