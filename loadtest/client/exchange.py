"""One request on the wire, and when each thing about it happened.

All times are seconds of ``time.perf_counter``, taken in the callback that the event loop runs when
bytes arrive. The loop's own lag is measured beside (loadtest.client.process), because it is in
every one of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Failure(StrEnum):
    """Why an exchange has no complete answer. One with an HTTP error is not a failure here."""

    CONNECT = "connect"  # no connection
    CLOSED = "closed"  # the server closed before the end
    TRUNCATED = (
        "truncated"  # an answer that began and did not end, or a stream without its last event
    )
    MALFORMED = "malformed"  # no HTTP, or no server-sent events where they were due
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"  # by us, on purpose


@dataclass(slots=True)
class Exchange:
    """What is sent, and what came back.

    ``pieces`` are a stream's body as it arrived and ``piece_times`` the time of each; ``body`` is
    the answer where it is not a stream. ``cancel_after`` closes the connection when so many events
    have come; ``pause_s`` waits so long before each further small read: a slow reader.
    """

    head: bytes
    content: bytes
    cancel_after: int | None = None
    pause_s: float = 0.0

    began: float = 0.0  # given to the client: a new connection may have to be made first
    connected: float | None = None  # where one was made
    sent: float = 0.0
    headers: float | None = None
    ended: float = 0.0
    status: int = 0
    is_stream: bool = False
    pieces: list[bytes] = field(default_factory=list)
    piece_times: list[float] = field(default_factory=list)
    body: bytearray = field(default_factory=bytearray)
    bytes_in: int = 0
    failure: Failure | None = None
    detail: str = ""
    retries: int = 0  # on a kept connection that the server had closed meanwhile


# Server-sent events, cut out of a body as its bytes arrive (WHATWG HTML, section 9.2).
#
# Only ``data`` matters to an OpenAI-style stream. An event came when its last byte did. Pieces are
# kept as they came, each with its time, and are cut later: a measurement must not compete with its
# own measuring.

DONE = b"[DONE]"


class SSEParser:
    """Feed it a body's pieces; it returns the ``data`` of each event that became whole."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def feed(self, piece: bytes) -> list[bytes]:
        """The data of all events that end in ``piece``, in order. Lines end in LF, CRLF or CR."""
        if self._is_one_event(piece):
            return [piece[6:-2]]
        text = self._rest + piece
        if b"\r" in text:
            # A CR at the very end may be half of a CRLF.
            held = text.endswith(b"\r")
            body = (text[:-1] if held else text).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
            text = body + (b"\r" if held else b"")
        *lines, self._rest = text.split(b"\n")
        found = []
        for line in lines:
            if not line:
                if self._data:
                    found.append(b"\n".join(self._data))
                    self._data = []
            elif line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
        return found

    def _is_one_event(self, piece: bytes) -> bool:
        """What nearly every piece is: one line of data, whole. Tested because it is so cheap."""
        return (
            not self._rest
            and not self._data
            and piece.startswith(b"data: ")
            and piece.endswith(b"\n\n")
            and piece.count(b"\n") == 2
            and b"\r" not in piece
        )
