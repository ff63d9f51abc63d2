"""The HTTP/1.1 server: uvicorn with our limits, and with our error shape on the lowest level.

What happens before there is a request (too many connections, headers that do not come or are no
HTTP) is the protocol's to answer; everything after is the application's.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from server.api.errors import error_json
from server.api.state import HttpLimits
from server.errors import ErrorCode, QuireError
from server.metrics.stats import RequestMetrics

MAX_UNREAD_BYTES = 64 * 1024 * 1024  # of a refused body, read and thrown away before closing


def serve(
    app: ASGIApp,
    limits: HttpLimits,
    metrics: RequestMetrics,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    drain_timeout_s: int | None = None,
) -> uvicorn.Server:
    """A server that is not running yet: ``await server.serve(sockets=...)`` runs it.

    Signals are the caller's: setting ``server.should_exit`` stops accepting connections, finishes
    those that are open (for at most ``drain_timeout_s``), and returns. With ``sockets`` host and
    port are only names. ``metrics`` hears of answers that the application knows nothing of.
    """
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=_protocol_class(limits, metrics),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=max(1, int(limits.keep_alive_s)),
        timeout_graceful_shutdown=drain_timeout_s,
        h11_max_incomplete_event_size=limits.max_header_bytes,
    )
    return _Server(config)


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leaves the process's signal handlers alone."""
        yield


def _protocol_class(limits: HttpLimits, metrics: RequestMetrics) -> type[H11Protocol]:
    """uvicorn makes protocols itself, so what they need is bound to a class."""

    class LimitedProtocol(_LimitedProtocol):
        quire_limits = limits
        quire_metrics = metrics

    return LimitedProtocol


class _LimitedProtocol(H11Protocol):
    """Adds deadlines to a connection's quiet times.

    waiting for headers --(receive_timeout)--> 408, closed
    body of an answered request --(receive_timeout, MAX_UNREAD_BYTES)--> closed
    client does not read --(send_timeout)--> aborted
    """

    quire_limits: HttpLimits
    quire_metrics: RequestMetrics

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._receive_timer: asyncio.TimerHandle | None = None
        self._send_timer: asyncio.TimerHandle | None = None
        self._unread = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        limit = self.quire_limits.max_connections
        if len(self.connections) > limit:
            message = f"The server has {limit} connections open, its most. Try again soon."
            self._refuse(
                QuireError(ErrorCode.TOO_MANY_CONNECTIONS, message, retry_after=1),
            )
            return
        self._watch_receiving()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_receive_timer()
        self._stop_send_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        super().data_received(data)
        if self._discarding:
            self._unread += len(data)
            if self._unread > MAX_UNREAD_BYTES:
                self.transport.abort()
        self._watch_receiving()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._unread = 0
        self._watch_receiving()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stop_send_timer()
        self._send_timer = self.loop.call_later(
            self.quire_limits.send_timeout_s, self.transport.abort
        )

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_send_timer()

    def send_400_response(self, msg: str) -> None:
        """uvicorn's answer to what is no HTTP, given while it handles the parser's error."""
        error = sys.exception()
        limit = self.quire_limits.max_header_bytes
        if isinstance(error, h11.RemoteProtocolError) and error.error_status_hint == 431:
            message = f"The request's headers have more than {limit} bytes, which are allowed."
            self._refuse(QuireError(ErrorCode.HEADERS_TOO_LARGE, message))
            return
        message = f"This is no valid HTTP/1.1 request with at most {limit} bytes of headers."
        self._refuse(QuireError(ErrorCode.INVALID_REQUEST, message))

    @property
    def _answered(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    @property
    def _discarding(self) -> bool:
        """The answer is out, the request's body still comes."""
        return self._answered and self.conn.their_state is h11.SEND_BODY

    def _watch_receiving(self) -> None:
        """Runs the deadline while headers, or the rest of a refused body, are on their way."""
        idle = self.cycle is not None and self._answered and not self.conn.trailing_data[0]
        keeps_alive = idle and self.conn.their_state is h11.IDLE
        expects = self._answered and not keeps_alive and not self.transport.is_closing()
        if not expects:
            self._stop_receive_timer()
        elif self._receive_timer is None:
            self._receive_timer = self.loop.call_later(
                self.quire_limits.receive_timeout_s, self._receive_too_slow
            )

    def _receive_too_slow(self) -> None:
        self._receive_timer = None
        if self._discarding:
            self.transport.abort()
            return
        seconds = self.quire_limits.receive_timeout_s
        message = f"The request's headers did not arrive within {seconds:g} s."
        self._refuse(QuireError(ErrorCode.REQUEST_TIMEOUT, message))

    def _refuse(self, error: QuireError) -> None:
        """Writes a whole response past the state machine, counts it, and closes."""
        if self.transport.is_closing():
            return
        self.quire_metrics.observe_http("unmatched", "OTHER", error.code.value.status)
        body = error_json(error)
        kind = error.code.value
        retry = f"retry-after: {error.retry_after}\r\n" if error.retry_after else ""
        head = (
            f"HTTP/1.1 {kind.status} {kind.code}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n{retry}connection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()

    def _stop_receive_timer(self) -> None:
        if self._receive_timer is not None:
            self._receive_timer.cancel()
            self._receive_timer = None

    def _stop_send_timer(self) -> None:
        if self._send_timer is not None:
            self._send_timer.cancel()
            self._send_timer = None
