"""Accepting connections: a few a turn, and quietly where the process has no descriptors left.

asyncio's own loop accepts a whole backlog in one turn, and where descriptors run out it logs a
traceback for each of them.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import time
from collections.abc import Callable

# In one turn of the loop. A probe behind hundreds of others is found to be one when it has been
# accepted; accepting is cheap, and what is then asked waits for its pass.
ACCEPTS = 64
PAUSE_S = 1.0  # where no other connection could be closed for a new one
REPORT_S = 60.0  # between two lines about that in the log
# The connection has gone again, or its network has: accept(2) passes on such errors.
_GONE = frozenset(
    getattr(errno, name)
    for name in (
        "ECONNABORTED", "EINTR", "EPROTO", "ENETDOWN", "ENOPROTOOPT", "EHOSTDOWN", "ENONET",
        "EHOSTUNREACH", "EOPNOTSUPP", "ENETUNREACH",
    )
)  # fmt: skip
log = logging.getLogger("quire.api")


class Acceptor:
    """Accepts from one listening socket, from its making until ``close``.

    ``factory`` makes a connection's protocol. ``on_shortage`` is called where a connection cannot
    be accepted for want of descriptors or memory; it says whether it has closed another one.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        listener: socket.socket,
        factory: Callable[[], asyncio.BaseProtocol],
        on_shortage: Callable[[], bool],
    ) -> None:
        self._loop, self._listener = loop, listener
        self._factory, self._on_shortage = factory, on_shortage
        self._tasks: set[asyncio.Task[None]] = set()
        self._failures = 0
        self._reported: float | None = None
        self._pause: asyncio.TimerHandle | None = None
        self._closed = False
        listener.setblocking(False)
        self._resume()

    def close(self) -> None:
        """Accepts no more. The listener is the caller's to close."""
        self._closed = True
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._listener)

    def _resume(self) -> None:
        self._pause = None
        self._loop.add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        for _ in range(ACCEPTS):
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _GONE:
                    continue
                self._failed(error)
                return
            task = self._loop.create_task(self._join(connection))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _join(self, connection: socket.socket) -> None:
        try:
            connection.setblocking(False)
            await self._loop.connect_accepted_socket(self._factory, connection)
        except OSError as error:
            connection.close()
            self._failed(error)

    def _failed(self, error: OSError) -> None:
        """Tries again once another connection is closed, or later; says so once a minute."""
        self._failures += 1
        if not self._closed and not self._on_shortage() and self._pause is None:
            self._loop.remove_reader(self._listener)
            self._pause = self._loop.call_later(PAUSE_S, self._resume)
        now = time.monotonic()
        if self._reported is None or now - self._reported >= REPORT_S:
            self._reported = now
            log.warning(
                "accept failed (%d times so far): %s; closing idle connections",
                self._failures,
                error.strerror or error,
            )
