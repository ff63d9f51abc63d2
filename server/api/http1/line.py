"""A client's line: whether it is read from, what was written and not sent, how long both may take.

What comes over it is the connection's (server.api.http1.connection).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from server.api.http1.shared import Shared


class Line(asyncio.BufferedProtocol):
    """One client's transport. Its timers:

    a request, from its first byte to its last --(receive_timeout)--> 408, closed
    the rest of the body of an answered request --(the same)--> closed
    nothing under way --(keep_alive; before a first request receive_timeout)--> closed
    client does not read --(send_timeout)--> aborted
    """

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._limits = shared.limits
        self._reading = True
        self._lost = False
        self._receive_timer: asyncio.TimerHandle | None = None
        self._idle_timer: asyncio.TimerHandle | None = None
        self._send_timer: asyncio.TimerHandle | None = None
        self._writable: asyncio.Future[None] | None = None

    # asyncio calls these.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        for timer in (self._receive_timer, self._idle_timer, self._send_timer):
            _stop(timer)
        self._let_write()

    def pause_writing(self) -> None:
        if self._writable is None:
            self._writable = self._shared.loop.create_future()
        self._limit_sending()

    def resume_writing(self) -> None:
        if not self._transport.is_closing():
            _stop(self._send_timer)
        self._let_write()

    # The exchange calls these.

    @property
    def closing(self) -> bool:
        return self._transport.is_closing()

    def write(self, data: bytes) -> None:
        self._transport.write(data)

    async def drained(self) -> None:
        while self._writable is not None:
            await asyncio.shield(self._writable)

    def abort(self) -> None:
        self._transport.abort()

    # The connection calls these.

    def _read_on(self, wanted: bool) -> None:
        if wanted is self._reading or self._lost or self._transport.is_closing():
            return
        self._reading = wanted
        if wanted:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def _close(self) -> None:
        """What was written is still sent, if the client reads it in time."""
        self._transport.close()
        if not self._lost and self._transport.get_write_buffer_size():
            self._limit_sending()

    def _close_our_side(self) -> None:
        """The whole closes when the client has closed its side, or the time is over."""
        self._transport.write_eof()
        self._stop_receiving()
        self._receive_timer = self._later(self._limits.receive_timeout_s, self._transport.abort)

    def _limit_receiving(self, too_slow: Callable[[], object]) -> None:
        """Starts the deadline of a request, which then runs until its last byte."""
        if self._receive_timer is None:
            self._receive_timer = self._later(self._limits.receive_timeout_s, too_slow)

    def _stop_receiving(self) -> None:
        _stop(self._receive_timer)
        self._receive_timer = None

    def _limit_idling(self) -> None:
        self._idle_timer = self._later(self._limits.keep_alive_s, self._close)

    def _stop_idling(self) -> None:
        _stop(self._idle_timer)

    def _limit_sending(self) -> None:
        _stop(self._send_timer)
        self._send_timer = self._later(self._limits.send_timeout_s, self._transport.abort)

    def _later(self, seconds: float, act: Callable[[], object]) -> asyncio.TimerHandle:
        return self._shared.loop.call_later(seconds, act)

    def _let_write(self) -> None:
        if self._writable is not None:
            self._writable.set_result(None)
            self._writable = None


def _stop(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
