"""Clients that are heavy on a server's connections, and a good one that is served beside them.

Plain clients of any server's port, with no opinion of what is right: tests count what comes of
them, a soak prints how long it takes.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

POST_IN_CHUNKS = (
    b"POST /v1/completions HTTP/1.1\r\nhost: heavy\r\ncontent-type: application/json\r\n"
    b"connection: close\r\ntransfer-encoding: chunked\r\n\r\n"
)
_WRITE_BYTES = 64 * 1024


def status_of(answer: bytes) -> int:
    """The status of a whole answer, 0 where there was none."""
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else 0


@dataclass
class ChunkSender:
    """Sends bodies in chunks of ``size`` bytes, ``body_bytes`` each, one after the other.

    A body that the server answers before its end is given up and the next one begun, as somebody
    would who means harm. ``statuses`` counts what was answered, 0 where the connection broke.
    """

    host: str
    port: int
    size: int = 1
    body_bytes: int = 6 * 1024 * 1024
    statuses: Counter[int] = field(default_factory=Counter)

    async def run(self, bodies: int) -> None:
        for _ in range(bodies):
            self.statuses[await self._body()] += 1

    async def _body(self) -> int:
        chunk = b"%x\r\n%s\r\n" % (self.size, b" " * self.size)
        block = chunk * max(1, _WRITE_BYTES // len(chunk))
        reader, writer = await asyncio.open_connection(self.host, self.port)
        answer = asyncio.create_task(reader.read())
        try:
            writer.write(POST_IN_CHUNKS)
            left = self.body_bytes // self.size
            while left > 0 and not answer.done():
                writer.write(block[: left * len(chunk)])
                left -= _WRITE_BYTES // len(chunk)
                await writer.drain()
                await asyncio.sleep(0)
            if not answer.done():
                writer.write(b"0\r\n\r\n")
            return status_of(await answer)
        except OSError:
            return status_of(answer.result()) if answer.done() and not answer.exception() else 0
        finally:
            answer.cancel()
            writer.close()


@asynccontextmanager
async def silent_connections(
    host: str, port: int, count: int
) -> AsyncIterator[list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]:
    """So many connections that never send a byte, in the order in which they were made."""
    opened: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
    try:
        for _ in range(count):
            opened.append(await asyncio.open_connection(host, port))
        yield opened
    finally:
        for _, writer in opened:
            writer.close()


@dataclass
class GoodClient:
    """Asks for one path again and again, on a new connection each time, as a probe does.

    Where there is a ``body``, it is a JSON body that is posted.
    """

    host: str
    port: int
    path: str = "/health"
    body: bytes = b""
    seconds: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)

    async def ask(self) -> int:
        begun = time.perf_counter()
        status = 0
        try:
            reader, writer = await asyncio.open_connection(self.host, self.port)
            method = "POST" if self.body else "GET"
            request = f"{method} {self.path} HTTP/1.1\r\nhost: good\r\nconnection: close\r\n"
            if self.body:
                request += f"content-type: application/json\r\ncontent-length: {len(self.body)}\r\n"
            writer.write(request.encode() + b"\r\n" + self.body)
            status = status_of(await reader.read())
            writer.close()
        except OSError:
            pass  # counted: no status
        self.seconds.append(time.perf_counter() - begun)
        self.statuses[status] += 1
        return status

    async def run_until(self, stop: asyncio.Event, pause_s: float = 0.05) -> None:
        while not stop.is_set():
            await self.ask()
            await asyncio.sleep(pause_s)
