"""A client's connection: finds requests in what comes, runs the application.

What happens before there is a request (too many connections, heads that do not come or are no
HTTP) is answered here; everything after is the application's.

    HEAD --whole--> BODY --whole--> ANSWER --complete--> HEAD (kept) or closed
      |               |
      | refused       | malformed, too large, too slow: the application is told, and answers
      v               v
    DEAF: what still comes is thrown away, so that the answer is not lost in a reset
"""

from __future__ import annotations

import asyncio
import enum

from server.api.http1.body import BodyReader, ChunkedBody, LengthBody
from server.api.http1.exchange import Exchange
from server.api.http1.head import Head, HeadReader, request_scope
from server.api.http1.line import Line
from server.api.http1.places import PROBES, Place, Quiet
from server.api.http1.shared import Shared, refusal
from server.api.http1.turns import FULL_READ, SMALL_READ, Work
from server.errors import ErrorCode, QuireError

MAX_UNREAD_BYTES = 64 * 1024 * 1024  # of a refused body, read and thrown away before closing
_PROBE_LINES = tuple(b"GET %s " % path.encode() for path in sorted(PROBES))


class Phase(enum.Enum):
    HEAD = "head"  # a request's head is awaited, or on its way
    BODY = "body"  # its body is on its way
    ANSWER = "answer"  # it is whole, its answer is not
    DEAF = "deaf"  # nothing more is read as a request


class Connection(Line):
    """One client's connection: its requests, one after the other."""

    def __init__(self, shared: Shared) -> None:
        super().__init__(shared)
        self.queued = False  # for a pass
        self._input = bytearray()
        self._phase = Phase.HEAD
        self._head = HeadReader(shared.limits.max_header_bytes)
        self._body: BodyReader = LengthBody(0)
        self._exchange: Exchange | None = None
        self._place: Place | None = None
        self._unread = 0  # bytes thrown away
        self._stopping = False

    # asyncio calls these.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._shared.connections.add(self)
        self._place = self._shared.places.enter(self)
        if self._place is None:
            self._refuse(self._too_many(), linger=False)
        else:
            self._limit_receiving(self._too_slow)  # a first request's deadline is from here

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._shared.connections.discard(self)
        self._shared.places.leave(self)
        self._deafen()
        if self._exchange is not None:
            self._exchange.disconnect()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._shared.turns.buffer(small=self._phase is Phase.ANSWER)

    def buffer_updated(self, nbytes: int) -> None:
        data = self._shared.turns.taken(nbytes)
        if self._phase is Phase.DEAF:
            self._throw_away(nbytes)
        elif not self._transport.is_closing():
            self._input += data
            self._shared.turns.offer(self)

    def eof_received(self) -> None:
        """A client that has closed its side has gone. asyncio would close too, but wait for ever
        for it to read what was written."""
        if self._exchange is not None:
            self._exchange.disconnect()
        self._close()

    # The server calls this.

    def shutdown(self) -> None:
        """Closes once the request under way is answered."""
        self._stopping = True
        if self._exchange is None or self._exchange.complete:
            self._close()
        else:
            self._exchange.keep_alive = False

    # Turns calls these.

    @property
    def waiting(self) -> Work:
        if self._phase is not Phase.HEAD:
            return Work.BODY
        return Work.PROBE if self._input.startswith(_PROBE_LINES) else Work.HEAD

    def work(self) -> bool:
        if self._transport.is_closing():
            return False
        if self._phase is Phase.HEAD and self._input:
            self._read_head()
        return self._phase is Phase.BODY and self._read_body()

    def regulate(self) -> None:
        self._read_on(not self.queued and self._wants_input())

    def _wants_input(self) -> bool:
        """Whether to read on. What waits here is one read at most, or the beginning of a head; a
        client that has gone is noticed while there is room for it."""
        if self._phase is Phase.BODY:
            return not self._input or (self._body.starved and self._room() > 0)
        return self._phase is not Phase.ANSWER or len(self._input) < SMALL_READ

    # Places calls this.

    def make_room(self, why: Quiet) -> None:
        if why is Quiet.SILENT:
            self._refuse(self._too_many("; this one had not asked for anything yet"), linger=False)
        elif why is Quiet.KEPT:
            self._close()
        else:
            self._transport.abort()

    # The exchange calls these.

    @property
    def default_headers(self) -> list[tuple[bytes, bytes]]:
        return self._shared.default_headers()

    def wants_body(self) -> None:
        if self._phase is Phase.BODY and self._input:
            self._shared.turns.offer(self)

    def unread_closes(self) -> bool:
        if self._phase is Phase.ANSWER:
            return False
        remaining = self._body.remaining
        return self._phase is Phase.DEAF or remaining is None or remaining > MAX_UNREAD_BYTES

    def answered(self) -> None:
        if self._transport.is_closing() or self._exchange is None:
            return
        if self._exchange.keep_alive and self._phase is not Phase.DEAF:
            if self._phase is Phase.BODY:
                self._shared.places.is_quiet(self, Quiet.LEAVING)
                self._shared.turns.offer(self)
            else:
                self._next_request()
        elif self._phase is Phase.ANSWER:
            self._close()
        else:
            self._linger()

    # The request.

    def _read_head(self) -> None:
        self._stop_idling()
        try:
            head = self._head.read(self._input)
            if head is not None:
                self._begin(head)
        except QuireError as error:
            self._refuse(error)
            return
        if self._phase is Phase.HEAD:
            self._limit_receiving(self._too_slow)

    def _begin(self, head: Head) -> None:
        reserved = self._place is Place.RESERVE
        if reserved and head.path not in PROBES:
            raise self._too_many(f"; only {', '.join(sorted(PROBES))} are answered beyond it")
        self._shared.places.is_busy(self)
        keep_alive = head.keep_alive and not self._stopping and not reserved
        scope = request_scope(head, self._transport, self._shared.app_state)
        exchange = self._exchange = Exchange(self, scope, keep_alive, head.expects_continue)
        if head.body_length is None:
            limits = self._limits
            self._body = ChunkedBody(limits.max_body_bytes, limits.max_header_bytes)
        else:
            self._body = LengthBody(head.body_length)
        self._phase = Phase.BODY
        self._limit_receiving(self._too_slow)
        task = self._shared.loop.create_task(exchange.run(self._shared.app))
        self._shared.tasks.add(task)
        task.add_done_callback(self._shared.tasks.discard)

    def _read_body(self) -> bool:
        """One pass over the body. True where more of it can be read now."""
        exchange = self._exchange
        if exchange is None:
            return False
        room = self._room()
        if room <= 0:
            return False
        try:
            data = self._body.read(self._input, room)
        except QuireError as error:
            self._break(error)
            return False
        if exchange.complete:
            self._throw_away(len(data))
        else:
            exchange.add(data, whole=self._body.complete)
        if not self._body.complete:
            return not self._body.starved and not self._transport.is_closing()
        self._stop_receiving()
        self._phase = Phase.ANSWER
        if exchange.complete:
            self._next_request()
        return False

    def _room(self) -> int:
        """Bytes of body that may be decoded now."""
        exchange = self._exchange
        return FULL_READ if exchange is None or exchange.complete else exchange.room

    def _break(self, error: QuireError) -> None:
        """The body cannot be had whole, and where a next request would begin is not known."""
        self._stop_receiving()
        self._deafen()
        if self._exchange is not None and not self._exchange.complete:
            self._exchange.fail(error)
        else:
            self._close()

    def _next_request(self) -> None:
        self._exchange = None
        self._unread = 0
        if self._stopping:
            self._close()
            return
        self._phase = Phase.HEAD
        self._head = HeadReader(self._limits.max_header_bytes)
        self._shared.places.is_quiet(self, Quiet.KEPT)
        if self._input:
            self._shared.turns.offer(self)
        else:
            self._limit_idling()

    # Refusals and ends.

    def _too_many(self, more: str = "") -> QuireError:
        limit = self._limits.max_connections
        message = f"The server has {limit} connections open, its most{more}. Try again soon."
        return QuireError(ErrorCode.TOO_MANY_CONNECTIONS, message, retry_after=1)

    def _refuse(self, error: QuireError, *, linger: bool = True) -> None:
        """Answers what is not a request for the application, counts it, and closes."""
        if self._transport.is_closing():
            return
        self._stop_receiving()
        self._deafen()
        self._shared.metrics.observe_http("unmatched", "OTHER", error.code.value.status)
        self._transport.write(refusal(error))
        if linger:
            self._linger()
        else:
            self._close()

    def _deafen(self) -> None:
        self._phase = Phase.DEAF
        self._throw_away(len(self._input))
        self._input.clear()
        self.regulate()

    def _linger(self) -> None:
        """Closes our side, and the whole when the client has: unread bytes would reset
        the connection, and the answer with it."""
        if self._stopping or self._lost:
            self._close()
            return
        self._deafen()
        self._shared.places.is_quiet(self, Quiet.LEAVING)
        self._close_our_side()

    def _throw_away(self, nbytes: int) -> None:
        self._unread += nbytes
        if self._unread > MAX_UNREAD_BYTES:
            self._transport.abort()

    def _too_slow(self) -> None:
        self._receive_timer = None
        seconds = self._limits.receive_timeout_s
        message = f"The request did not arrive within {seconds:g} s: its %s incomplete."
        if self._phase is Phase.HEAD:
            self._refuse(QuireError(ErrorCode.REQUEST_TIMEOUT, message % "headers are"))
        elif self._exchange is None or self._exchange.complete:
            self._transport.abort()
        else:
            self._break(QuireError(ErrorCode.REQUEST_TIMEOUT, message % "body is"))
