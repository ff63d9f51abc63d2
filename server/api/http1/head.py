"""The head of a request: parsed by httptools, and then held to what leaves no doubt of its end.

A head that two parsers could read differently hides a second request in the body of the first
(request smuggling; RFC 9112, 6.1 and 6.3), so everything that is not plain is refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import httptools

from server.errors import ErrorCode, QuireError

MAX_FIELDS = 128  # header fields of a request; browsers behind proxies send some 40
_END = b"\r\n\r\n"
_MAX_LENGTH_DIGITS = 18  # of a Content-Length: below 2^63


@dataclass(frozen=True, slots=True)
class Head:
    """One request's line and header fields. Names are in lower case, values without outer blanks.

    ``body_length`` is in bytes; None means that the body comes in chunks.
    """

    method: str
    path: str  # percent-decoded
    raw_path: bytes
    query: bytes
    version: str  # "1.0" or "1.1"
    headers: list[tuple[bytes, bytes]]
    body_length: int | None
    keep_alive: bool
    expects_continue: bool


class HeadReader:
    """Reads one head from bytes that come in pieces. ``limit`` bounds its bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._fed = 0  # bytes of the input that the parser has seen
        self._lines = 0
        self._target = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._messages = 0
        self._whole = self._beyond = False
        self._parser = httptools.HttpRequestParser(self)

    @property
    def begun(self) -> bool:
        return self._fed > 0

    def read(self, data: bytearray) -> Head | None:
        """Takes a head that is whole off ``data``; None, and nothing is taken, where it is not.

        What cannot become a head any more is refused before its end has come.

        Raises:
            QuireError: it is no HTTP/1.1, too large, or its framing is in doubt.
        """
        if not self._fed and data.startswith((b"\r", b"\n")):
            del data[: len(data) - len(data.lstrip(b"\r\n"))]  # RFC 9112, 2.2
        found = data.find(_END, max(0, self._fed - len(_END) + 1))
        end = len(data) if found < 0 else found + len(_END)
        self._bound(data, end)
        self._feed(data, end)
        if data.startswith(b"PRI * HTTP/2"):
            raise _invalid("HTTP/2 is not supported")
        if self._beyond or self._messages > 1 or self._whole != (found >= 0):
            raise _invalid("its head does not end where it seems to")
        if found < 0:
            return None
        del data[:end]
        return self._head()

    def _bound(self, data: bytearray, end: int) -> None:
        self._lines += data.count(b"\r\n", max(0, self._fed - 1), end)
        if end > self._limit or self._lines > MAX_FIELDS + 2:  # the request's line, the empty one
            raise QuireError(
                ErrorCode.HEADERS_TOO_LARGE,
                f"The request's headers exceed the limit of {self._limit} bytes or "
                f"{MAX_FIELDS} fields.",
            )

    def _feed(self, data: bytearray, end: int) -> None:
        piece = bytes(data[self._fed : end])
        self._fed = end
        try:
            self._parser.feed_data(piece)
        except httptools.HttpParserUpgrade:
            pass  # no upgrade is offered: the request is answered as if it had not asked for one
        except httptools.HttpParserError as error:
            raise _invalid(str(error)) from None

    def _head(self) -> Head:
        version = self._parser.get_http_version()
        method = self._parser.get_method().decode("ascii")
        del self._parser  # it and this object hold each other
        if version not in ("1.0", "1.1"):
            raise _invalid(f"HTTP/{version} is not supported")
        if version == "1.1" and sum(name == b"host" for name, _ in self._headers) != 1:
            raise _invalid("it must have exactly one Host header")
        raw_path, _, query = _origin_form(self._target).partition(b"?")
        options = [
            option.strip().lower()
            for name, value in self._headers
            if name == b"connection"
            for option in value.split(b",")
        ]
        return Head(
            method=method,
            path=unquote(raw_path.decode("ascii")),
            raw_path=raw_path,
            query=query,
            version=version,
            headers=self._headers,
            body_length=_body_length(self._headers, version),
            keep_alive=version == "1.1" and b"close" not in options,
            expects_continue=version == "1.1"
            and any(
                name == b"expect" and value.lower() == b"100-continue"
                for name, value in self._headers
            ),
        )

    # httptools calls these.

    def on_message_begin(self) -> None:
        self._messages += 1

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.lower(), value.strip(b" \t")))

    def on_headers_complete(self) -> None:
        self._whole = True

    def on_body(self, body: bytes) -> None:
        self._beyond = True

    def on_chunk_header(self) -> None:
        self._beyond = True


def _invalid(why: str) -> QuireError:
    message = f"This is not a valid HTTP/1.1 request: {why.rstrip('.')}."
    return QuireError(ErrorCode.INVALID_REQUEST, message)


def _origin_form(target: bytes) -> bytes:
    """The target as a path and a query, of whatever form it was sent in (RFC 9112, 3.2)."""
    if not target.isascii() or b"#" in target:
        raise _invalid("its target has characters that must be percent-encoded")
    if target.startswith(b"/") or target == b"*":
        return target
    scheme, separator, rest = target.partition(b"://")
    if not separator or scheme.lower() not in (b"http", b"https"):
        raise _invalid("its target must begin with /")
    starts = [at for at in (rest.find(b"/"), rest.find(b"?")) if at >= 0]
    path = rest[min(starts) :] if starts else b""
    return path if path.startswith(b"/") else b"/" + path


def _body_length(headers: list[tuple[bytes, bytes]], version: str) -> int | None:
    """How the body ends. Raises QuireError where there is more than one answer."""
    lengths = [value for name, value in headers if name == b"content-length"]
    codings = [value for name, value in headers if name == b"transfer-encoding"]
    if codings:
        if lengths:
            raise _invalid("Content-Length and Transfer-Encoding exclude each other")
        if version != "1.1" or [coding.lower() for coding in codings] != [b"chunked"]:
            raise _invalid("the only Transfer-Encoding is chunked, once, in HTTP/1.1")
        return None
    if not lengths:
        return 0
    if len(lengths) > 1 or not lengths[0].isdigit() or len(lengths[0]) > _MAX_LENGTH_DIGITS:
        raise _invalid("Content-Length must be one number of bytes, once")
    return int(lengths[0])


# A request's head as ASGI's scope (version 3.0).


def request_scope(
    head: Head, transport: asyncio.BaseTransport, app_state: Mapping[str, Any]
) -> dict[str, Any]:
    server = transport.get_extra_info("sockname")
    client = transport.get_extra_info("peername")
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": head.version,
        "server": tuple(server[:2]) if isinstance(server, tuple) else None,
        "client": tuple(client[:2]) if isinstance(client, tuple) else None,
        "scheme": "http",
        "root_path": "",
        "method": head.method,
        "path": head.path,
        "raw_path": head.raw_path,
        "query_string": head.query,
        "headers": head.headers,
        "state": dict(app_state),
    }
