"""One request and its answer, between a connection and the application: ASGI's receive and send."""

from __future__ import annotations

import asyncio
import logging
from http import HTTPStatus
from typing import Protocol

from starlette.types import ASGIApp, Message, Scope

from server.errors import QuireError

HIGH_WATER = 64 * 1024  # bytes of a body that wait for the application; the rest waits outside
_BODILESS = (204, 304)
_LINES = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n".encode() for s in HTTPStatus}
log = logging.getLogger("quire.api")


class Wire(Protocol):
    """What an exchange needs of its connection."""

    @property
    def closing(self) -> bool: ...

    @property
    def default_headers(self) -> list[tuple[bytes, bytes]]: ...

    def write(self, data: bytes) -> None: ...

    async def drained(self) -> None:
        """Returns once what was written may be added to, or it will not be read any more."""
        ...

    def wants_body(self) -> None:
        """The application waits for more of the body."""
        ...

    def unread_closes(self) -> bool:
        """More of the body is to come than will be thrown away to keep the connection."""
        ...

    def answered(self) -> None:
        """The answer is complete."""
        ...

    def abort(self) -> None: ...


class Exchange:
    """``keep_alive`` may turn False until the answer begins.

    Where a request is not to be had whole, ``receive`` raises what ``fail`` was given, and the
    application answers that like any other error.
    """

    def __init__(self, wire: Wire, scope: Scope, keep_alive: bool, expects_continue: bool) -> None:
        self.keep_alive = keep_alive
        self.complete = False  # the answer
        self.disconnected = False
        self._wire, self._scope = wire, scope
        self._owes_continue = expects_continue
        self._body = bytearray()
        self._whole = False
        self._failure: QuireError | None = None
        self._news = asyncio.Event()
        self._begun = False
        self._head = b""  # not written yet: it leaves together with the first of the body
        self._chunked = self._bodiless = False
        self._left: int | None = None  # bytes of the announced length

    @property
    def room(self) -> int:
        """Bytes of body that may be added."""
        return HIGH_WATER - len(self._body)

    def add(self, body: bytes, *, whole: bool) -> None:
        self._body += body
        self._whole = whole
        if body or whole:
            self._news.set()

    def fail(self, error: QuireError) -> None:
        self._failure = error
        self.keep_alive = False
        self._news.set()

    def disconnect(self) -> None:
        self.disconnected = not self.complete
        self._news.set()

    async def run(self, app: ASGIApp) -> None:
        """Runs the application to its end. It must answer; what it raises is logged."""
        try:
            await app(self._scope, self.receive, self.send)
            if not self.complete and not self.disconnected:
                log.error("the application ended a request without a complete response")
        except Exception:
            log.exception("the application raised outside its error handler")
        finally:
            if not self.complete and not self.disconnected:
                self._wire.abort()

    async def receive(self) -> Message:
        """ASGI's. Raises QuireError where the body is malformed, too large or too slow."""
        if self._owes_continue and not self._whole and not self._failure:
            self._owes_continue = False
            if not self._begun and not self._wire.closing:
                self._wire.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while not (self._news.is_set() or self._failure or self.disconnected or self.complete):
            self._wire.wants_body()
            await self._news.wait()
        self._news.clear()
        if self._failure is not None and not self.complete:
            raise self._failure
        if self.disconnected or self.complete:
            return {"type": "http.disconnect"}
        body = bytes(self._body)
        self._body.clear()
        return {"type": "http.request", "body": body, "more_body": not self._whole}

    async def send(self, message: Message) -> None:
        """ASGI's. What is sent to a client that has gone is dropped."""
        await self._wire.drained()
        if self.disconnected:
            return
        kind = message["type"]
        if kind == "http.response.start" and not self._begun:
            self._begin(message)
        elif kind == "http.response.body" and self._begun and not self.complete:
            self._continue(message.get("body", b""), message.get("more_body", False))
        else:
            raise RuntimeError(f"{kind} was sent out of order")

    def _begin(self, message: Message) -> None:
        self._begun = True
        status = message["status"]
        lines = [_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status]
        says_close = False
        for name, value in [*self._wire.default_headers, *message.get("headers", ())]:
            if b"\n" in name + value or b"\r" in name + value:
                raise RuntimeError("a header field has a line break in it")
            name = name.lower()
            if name == b"content-length":
                self._left = int(value)
            says_close |= name == b"connection" and value.lower() == b"close"
            lines.append(b"%s: %s\r\n" % (name, value))
        self._bodiless = self._scope["method"] == "HEAD" or status in _BODILESS
        if self._bodiless:
            self._left = None
        elif self._left is None:
            # A client that speaks HTTP/1.0 knows no chunks: its answer ends with the connection.
            self._chunked = self._scope["http_version"] != "1.0"
            self.keep_alive &= self._chunked
            if self._chunked:
                lines.append(b"transfer-encoding: chunked\r\n")
        # Unread and unbidden, a body may come or not; where it ends is then in doubt.
        unbidden = self._owes_continue and not self._whole
        if says_close or unbidden or self._wire.unread_closes():
            self.keep_alive = False
        if not self.keep_alive and not says_close:
            lines.append(b"connection: close\r\n")
        self._head = b"".join([*lines, b"\r\n"])
        if self._left is None and not self._bodiless:
            self._flush(b"")  # a stream: its head does not wait for its first event

    def _continue(self, body: bytes, more: bool) -> None:
        if self._bodiless:
            body = b""
        elif self._chunked:
            body = b"%x\r\n%s\r\n" % (len(body), body) if body else b""
            body += b"" if more else b"0\r\n\r\n"
        elif self._left is not None:
            self._left -= len(body)
            if self._left < 0 or (self._left and not more):
                raise RuntimeError("the response's length differs from its Content-Length")
        self._flush(body)
        if not more:
            self.complete = True
            self._news.set()
            self._wire.answered()

    def _flush(self, body: bytes) -> None:
        data, self._head = self._head + body, b""
        if data:
            self._wire.write(data)
