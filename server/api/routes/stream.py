"""A stream's bytes: events as they come, and comments while there are none.

A proxy takes a connection that is silent for a minute for a dead one. So a stream that has written
nothing for ``interval_s`` gets a comment, which every reader of server-sent events ignores (WHATWG
HTML, section 9.2): from the moment that the engine accepted the request, whether it waits in the
queue, in a long step or for an engine that stands still. Before that there is no status to send,
and an answer that is not a stream has nothing that could be sent ahead of it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from types import TracebackType

from starlette.types import Send

COMMENT = b": keep-alive\n\n"
Clock = Callable[[], float]  # seconds
Sleep = Callable[[float], Awaitable[object]]


class StreamWriter:
    """Writes a stream's body; as a context, with comments. ``interval_s`` 0 writes none.

    A comment is sent only when the one before it went out, and counts as a write: a client that
    does not read costs at most one that waits, beside what the connection buffers.
    """

    def __init__(
        self,
        send: Send,
        interval_s: float,
        clock: Clock = time.monotonic,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._send = send
        self._interval_s = interval_s
        self._clock = clock
        self._sleep = sleep
        self._written = clock()
        self._comments: asyncio.Task[None] | None = None

    async def __aenter__(self) -> StreamWriter:
        if self._interval_s > 0:
            self._comments = asyncio.create_task(self._keep_alive())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._stop_comments()

    async def write(self, data: bytes) -> None:
        if data:
            await self._send_body(data, more=True)

    async def end(self, data: bytes) -> None:
        """The last bytes. No comment may follow them."""
        await self._stop_comments()
        await self._send_body(data, more=False)

    async def _send_body(self, data: bytes, *, more: bool) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": more})
        self._written = self._clock()

    async def _keep_alive(self) -> None:
        while True:
            silent = self._clock() - self._written
            if silent < self._interval_s:
                await self._sleep(self._interval_s - silent)
            else:
                await self._send_body(COMMENT, more=True)

    async def _stop_comments(self) -> None:
        """Whatever ended them first is not lost: sending failed, so the next event's would too."""
        task, self._comments = self._comments, None
        if task is None:
            return
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled():
            task.result()
