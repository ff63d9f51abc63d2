"""The body of a request, decoded from bytes that come in pieces: of a known length, or in chunks.

A reader stops at the bounds of a pass, so that one connection's body never holds the loop.
"""

from __future__ import annotations

import re
from typing import Protocol

import httptools

from server.api.http1.head import MAX_FIELDS
from server.errors import ErrorCode, QuireError

PASS_BYTES = 64 * 1024  # of body that one pass over a connection decodes at most
PASS_CHUNKS = 64
# A client that writes without a buffer sends small chunks; one that sends nothing but tiny ones
# costs us far more than itself. So many are free, then one more for each so many bytes.
FREE_CHUNKS = 4096
MIN_MEAN_CHUNK = 64
MAX_CHUNK_LINE = 256  # the size, and extensions, which clients do not send
_PRIMER = b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n"
_SIZE = re.compile(rb"0*([0-9A-Fa-f]{1,15})(?=;|\Z)")


class BodyReader(Protocol):
    """``complete``: all of it was decoded. ``starved``: the last ``read`` wanted more bytes."""

    @property
    def complete(self) -> bool: ...

    @property
    def starved(self) -> bool: ...

    @property
    def remaining(self) -> int | None:
        """Bytes that are still to come; None where that is not known."""
        ...

    def read(self, data: bytearray, room: int) -> bytes:
        """Takes body off the front of ``data``: at most a pass's, and at most ``room`` bytes of it.

        Raises:
            QuireError: it is malformed or too large; nothing after it can be told apart.
        """
        ...


class LengthBody:
    """A body with a Content-Length. Its size is checked by who knows the limit of the route."""

    starved = True

    def __init__(self, length: int) -> None:
        self._left = length

    @property
    def complete(self) -> bool:
        return self._left == 0

    @property
    def remaining(self) -> int | None:
        return self._left

    def read(self, data: bytearray, room: int) -> bytes:
        taken = bytes(data[: min(self._left, room, PASS_BYTES)])
        del data[: len(taken)]
        self._left -= len(taken)
        self.starved = not data
        return taken


class ChunkedBody:
    """A body in chunks. httptools decides what is valid; here is where the pieces are cut.

    httptools does not tell a chunk's size before its bytes have come, and cannot be stopped between
    two chunks. So it is fed one chunk's line or bytes at a time, and must agree on where each ends.
    """

    remaining = None
    starved = True

    def __init__(self, limit: int, max_trailer_bytes: int) -> None:
        self.complete = False
        self._limit, self._max_trailer = limit, max_trailer_bytes
        self._size = self._chunks = self._trailer = self._trailer_lines = 0
        self._left = 0  # of the chunk under way, with the line break after it
        self._last = False  # the last chunk has come, trailers follow
        self._seen_chunks = self._seen_ends = 0  # by httptools
        self._out: list[bytes] = []
        self._parser = httptools.HttpRequestParser(self)
        self._parser.feed_data(_PRIMER)

    def read(self, data: bytearray, room: int) -> bytes:
        at, first = 0, self._chunks
        room = min(room, PASS_BYTES) + 2  # the line break after the data
        self.starved = False
        with memoryview(bytes(data)) as view:
            while not self.complete and room > 2 and self._chunks - first < PASS_CHUNKS:
                used, body = self._step(data, view, at, room)
                if not used:
                    self.starved = True
                    break
                at += used
                room -= body
        del data[:at]
        taken = b"".join(self._out)
        self._out.clear()
        return taken

    def _step(self, data: bytearray, view: memoryview, at: int, room: int) -> tuple[int, int]:
        """Handles a line, a chunk or a part of one. Bytes of input used, and of body in them."""
        line = 0
        if not self._left:
            longest = self._max_trailer if self._last else MAX_CHUNK_LINE
            end = data.find(b"\r\n", at, at + longest)
            if end < 0:
                _check_unfinished(data, at, longest)
                return 0, 0
            line = end + 2 - at
            if self._last:
                self._trailer_line(view[at : at + line])
                return line, 0
            self._begin_chunk(bytes(view[at:end]))
        part = min(self._left, len(view) - at - line, room)
        self._feed(view[at : at + line + part])
        self._left -= part
        if self._seen_chunks != self._chunks or (
            self._seen_ends != self._chunks - bool(self._left or self._last)
        ):
            raise _malformed("a chunk does not end where its size says")
        return line + part, part

    def _begin_chunk(self, line: bytes) -> None:
        found = _SIZE.match(line)
        if found is None:
            raise _malformed("a chunk must begin with its size in hexadecimal digits")
        size = int(found[1], 16)
        self._chunks += 1
        if self._size + size > self._limit:
            raise QuireError(
                ErrorCode.BODY_TOO_LARGE,
                f"The request body is larger than {self._limit} bytes. Send a smaller one.",
            )
        if self._chunks > FREE_CHUNKS + self._size // MIN_MEAN_CHUNK:
            raise QuireError(
                ErrorCode.INVALID_REQUEST,
                f"The request body came in {self._chunks} chunks for {self._size} bytes; "
                f"{FREE_CHUNKS} are allowed, and one more for every {MIN_MEAN_CHUNK} bytes. "
                "Send larger chunks, or a Content-Length.",
            )
        self._size += size
        self._last = size == 0
        self._left = size + 2 if size else 0

    def _trailer_line(self, line: memoryview) -> None:
        """Trailers are allowed and ignored."""
        self._trailer += len(line)
        self._trailer_lines += 1
        if self._trailer > self._max_trailer or self._trailer_lines > MAX_FIELDS:
            raise QuireError(
                ErrorCode.HEADERS_TOO_LARGE,
                f"The request's trailers exceed the limit of {self._max_trailer} bytes or "
                f"{MAX_FIELDS} fields.",
            )
        self._feed(line)
        if self.complete != (len(line) == 2):
            raise _malformed("it does not end with an empty line")

    def _feed(self, piece: memoryview) -> None:
        try:
            self._parser.feed_data(piece)
        except httptools.HttpParserError as error:
            raise _malformed(str(error)) from None

    # httptools calls these.

    def on_body(self, body: bytes) -> None:
        self._out.append(body)

    def on_chunk_header(self) -> None:
        self._seen_chunks += 1

    def on_chunk_complete(self) -> None:
        self._seen_ends += 1

    def on_message_complete(self) -> None:
        self.complete = True


def _check_unfinished(data: bytearray, at: int, longest: int) -> None:
    """Refuses a line whose end has not come where it cannot come any more."""
    if len(data) - at >= longest:
        raise _malformed(f"a line of it has more than {longest} bytes")
    if data.find(b"\n", at) >= 0:
        raise _malformed("its lines must end in CR LF")


def _malformed(why: str) -> QuireError:
    message = f"The request body is not validly chunked: {why.rstrip('.')}."
    return QuireError(ErrorCode.INVALID_REQUEST, message)
