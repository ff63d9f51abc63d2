"""One request on the wire, and when each thing about it happened.

All times are seconds of ``time.perf_counter``, taken in the callback that the event loop runs when
bytes arrive. The loop's own lag is measured beside (loadtest.client_load), because it is in every
one of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Failure(StrEnum):
    """Why an exchange has no whole answer. A whole answer with an HTTP error is no failure here."""

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
    the answer where it is no stream. ``cancel_after`` closes the connection when so many events
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
