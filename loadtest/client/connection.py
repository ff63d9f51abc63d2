"""HTTP/1.1 over asyncio transports, parsed by httptools: kept connections, times at arrival.

A general client would buffer, decode and wake a task for each piece; at thousands of streams that
is what one would measure. Here the callback that gets the bytes takes the time and keeps them, all
connections read into one buffer (asyncio's own would be a new one of 256 KiB for each read, which
takes longer than the read), and a task wakes once a request: when it ends.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections import deque
from dataclasses import dataclass

import httptools

from loadtest.client.exchange import Exchange, Failure, SSEParser

_READ_BYTES = 1 << 16
_SLOW_READ_BYTES = 1024  # of a slow reader, who also has hardly any room in the kernel


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens. ``prefix`` is the path of the base URL, without a last slash."""

    host: str
    port: int
    secure: bool = False
    prefix: str = ""

    @property
    def authority(self) -> str:
        """As the Host header says it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.secure else 80) else f"{host}:{self.port}"


class _Connection(asyncio.BufferedProtocol):
    """One connection, one exchange at a time. ``buffer`` is shared: it is empty between reads."""

    def __init__(self, loop: asyncio.AbstractEventLoop, buffer: memoryview) -> None:
        self._loop = loop
        self._buffer = buffer
        self._exchange: Exchange | None = None
        self._done: asyncio.Future[None] | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._cutter = SSEParser()
        self._events = 0
        self._until_close = True
        self.transport: asyncio.Transport | None = None
        self.reusable = True

    def begin(self, exchange: Exchange) -> asyncio.Future[None]:
        """Sends; the future ends when the exchange has."""
        if self.transport is None:
            raise RuntimeError("a connection sends after it was made")
        self._exchange, self._cutter, self._events = exchange, SSEParser(), 0
        self._until_close = True
        self._done = self._loop.create_future()
        self._parser = httptools.HttpResponseParser(self)
        if exchange.pause_s:
            self._read_little()
        exchange.sent = time.perf_counter()
        self.transport.write(exchange.head + exchange.content)
        return self._done

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if isinstance(transport, asyncio.Transport):
            self.transport = transport

    def get_buffer(self, sizehint: int) -> memoryview:
        slow = self._exchange is not None and self._exchange.pause_s
        return self._buffer[:_SLOW_READ_BYTES] if slow else self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        exchange, parser = self._exchange, self._parser
        if exchange is None or parser is None:
            self.close()  # bytes without a request
            return
        exchange.bytes_in += nbytes
        try:
            parser.feed_data(self._buffer[:nbytes])
        except httptools.HttpParserError as error:
            self._end(Failure.MALFORMED, f"not HTTP/1.1: {error}")
            return
        if self._exchange is not None and exchange.pause_s and self.transport is not None:
            self.transport.pause_reading()
            self._loop.call_later(exchange.pause_s, self._resume)

    def _read_little(self) -> None:
        """Leaves the rest in the server's hands: only a full buffer makes a reader slow."""
        self.reusable = False
        found = None if self.transport is None else self.transport.get_extra_info("socket")
        if found is not None:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SLOW_READ_BYTES)

    def _resume(self) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()

    # httptools calls these.

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name == b"content-type" and self._exchange is not None:
            self._exchange.is_stream = value.lower().startswith(b"text/event-stream")
        elif name in (b"content-length", b"transfer-encoding"):
            self._until_close = False

    def on_headers_complete(self) -> None:
        if self._exchange is not None and self._parser is not None:
            self._exchange.headers = time.perf_counter()
            self._exchange.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        exchange = self._exchange
        if exchange is None:
            return
        if not exchange.is_stream:
            exchange.body += body
            return
        exchange.piece_times.append(time.perf_counter())
        exchange.pieces.append(body)
        if exchange.cancel_after is not None:
            self._events += len(self._cutter.feed(body))
            if self._events >= exchange.cancel_after:
                self._end(Failure.CANCELLED, f"after {self._events} events, as asked for")

    def on_message_complete(self) -> None:
        exchange, parser = self._exchange, self._parser
        if exchange is None or parser is None or exchange.status < 200:
            return  # 100 Continue and its like come before the answer
        self.reusable = self.reusable and parser.should_keep_alive()
        self._end(None)

    def connection_lost(self, error: Exception | None) -> None:
        self.reusable = False
        self._parser = None  # it knows this connection: a reference cycle
        if self._exchange is None:
            return
        if self._exchange.headers is None:
            self._end(Failure.CLOSED, str(error or "closed by the server"))
        elif error is not None or not self._until_close:
            self._end(Failure.TRUNCATED, str(error or "closed by the server"))
        else:
            self._end(None)  # an answer of no stated length ends with its connection

    def fail(self, failure: Failure, detail: str) -> None:
        """Ends the exchange under way, if there is one, and the connection."""
        if self._exchange is not None:
            self._end(failure, detail)

    def close(self) -> None:
        self.reusable = False
        if self.transport is not None:
            self.transport.abort()

    def _end(self, failure: Failure | None, detail: str = "") -> None:
        exchange, done = self._exchange, self._done
        self._exchange = self._done = None
        if exchange is None or done is None:
            return
        exchange.ended = time.perf_counter()
        exchange.failure, exchange.detail = failure, detail
        if failure is not None:
            self.close()
        if not done.done():
            done.set_result(None)


class HttpClient:
    """Keeps idle connections to one server and gives each exchange one of them, or a new one."""

    def __init__(self, address: Address, timeout_s: float) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self._idle: deque[_Connection] = deque()
        self._buffer = memoryview(bytearray(_READ_BYTES))
        self._ssl = ssl.create_default_context() if address.secure else None
        self.connections_made = 0

    async def send(self, exchange: Exchange) -> None:
        """Runs the exchange to its end, whatever that is: what happened stands in it."""
        exchange.began = exchange.sent = time.perf_counter()
        while True:
            connection, reused = self._kept(), True
            if connection is None:
                reused = False
                connection = await self._connect(exchange)
                if connection is None:
                    return
            await self._run(connection, exchange)
            stale = reused and exchange.failure is Failure.CLOSED and exchange.bytes_in == 0
            if not stale:
                break
            exchange.retries += 1  # the server had closed it while it was idle: not its failure
            exchange.failure, exchange.detail = None, ""
        if connection.reusable and exchange.failure is None:
            self._idle.append(connection)
        else:
            connection.close()

    async def close(self) -> None:
        """Closes what is idle, and lets the loop see it."""
        while self._idle:
            self._idle.popleft().close()
        await asyncio.sleep(0)

    def _kept(self) -> _Connection | None:
        """The idle connection used last: the likeliest to be open still."""
        while self._idle:
            connection = self._idle.pop()
            if (
                connection.reusable
                and connection.transport
                and not connection.transport.is_closing()
            ):
                return connection
        return None

    async def _connect(self, exchange: Exchange) -> _Connection | None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._timeout_s):
                _, connection = await loop.create_connection(
                    lambda: _Connection(loop, self._buffer),
                    self._address.host,
                    self._address.port,
                    ssl=self._ssl,
                )
        except (OSError, TimeoutError) as error:
            exchange.ended = time.perf_counter()
            exchange.failure = Failure.CONNECT
            exchange.detail = str(error) or f"no connection within {self._timeout_s:g} s"
            return None
        self.connections_made += 1
        exchange.connected = time.perf_counter()
        return connection

    async def _run(self, connection: _Connection, exchange: Exchange) -> None:
        done = connection.begin(exchange)
        loop = asyncio.get_running_loop()
        timer = loop.call_later(
            self._timeout_s,
            connection.fail,
            Failure.TIMEOUT,
            f"no complete answer within {self._timeout_s:g} s",
        )
        try:
            await done
        except asyncio.CancelledError:
            connection.fail(Failure.CANCELLED, "the measurement was stopped")
            connection.close()  # the exchange may just have ended, and nothing refers to it
            raise
        finally:
            timer.cancel()


def request_head(
    address: Address, method: str, path: str, length: int, headers: dict[str, str]
) -> bytes:
    """The head of a request with a JSON body of ``length`` bytes."""
    lines = [f"{method} {address.prefix}{path} HTTP/1.1", f"Host: {address.authority}"]
    if length:
        lines += ["Content-Type: application/json", f"Content-Length: {length}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
