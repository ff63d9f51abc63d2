"""Clients with heavy bodies: JSON that costs much, bodies that never end, chats that are large.

Plain clients of any server's port, with no opinion of what is right: tests count what comes of
them, a soak prints how long it takes.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"


def _filled(
    unit: bytes, head: bytes = b'{"prompt":[', tail: bytes = b"1]}"
) -> Callable[[int], bytes]:
    def body(nbytes: int) -> bytes:
        return head + unit * ((nbytes - len(head) - len(tail)) // len(unit)) + tail

    return body


def _text(unit: bytes) -> Callable[[int], bytes]:
    return _filled(unit, b'{"max_tokens":0,"prompt":"', b'"}')


# Bodies of about so many bytes, never more, each of which is dear in its own way.
BODIES: dict[str, Callable[[int], bytes]] = {
    "lists": _filled(b"[],"),
    "objects": _filled(b"{},"),
    "lists of one": _filled(b"[1],"),
    "objects of one": _filled(b'{"a":1},'),
    "nested": _filled(b'{"a":', b"", b""),
    "numbers": _filled(b"1,"),
    "fractions": _filled(b"1.5,"),
    "empty strings": _filled(b'"",'),
    "quotes": _filled(b'"', b"", b""),
    "backslashes": _filled(b"\\", b"", b""),
    "long string": _text(b"a"),
    "long string with one wide character": _filled(
        b"a", '{"max_tokens":0,"prompt":"😀'.encode(), b'"}'
    ),
    "escaped quotes": _text(b'\\"'),
    "escaped line breaks": _text(b"\\n"),
    "escaped characters": _text(b"\\u00e9"),
    "escaped pairs": _text(b"\\ud83d\\ude00"),
}  # fmt: skip


def many_messages(count: int) -> bytes:
    return json.dumps({"messages": [{"role": "user", "content": "a"}] * count}).encode()


def large_chat(nbytes: int) -> bytes:
    """One message of text, tokens and all."""
    text = ("word def foo(a): return a + 1\n" * (nbytes // 30 + 1))[: nbytes - 100]
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": 1}
    return json.dumps(body).encode()


@dataclass
class Answers:
    """What became of some clients. ``retry`` counts the answers that say when to come again."""

    statuses: Counter[int] = field(default_factory=Counter)
    retry: int = 0

    def add(self, head: bytes) -> None:
        self.statuses[int(head.split(b" ", 2)[1]) if head else 0] += 1
        self.retry += b"\r\nretry-after: " in head.lower()


def request_head(path: str, length: int) -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        f"content-length: {length}\r\nconnection: close\r\n\r\n"
    ).encode()


class UnfinishedBodies:
    """Clients that send all of a body but its last byte, and stay. Use as a context manager."""

    def __init__(self, port: int, count: int, nbytes: int) -> None:
        self._port, self._count, self._nbytes = port, count, nbytes
        self._open: list[asyncio.StreamWriter] = []
        self._tasks: list[asyncio.Task[None]] = []
        self.answers = Answers()  # so far

    async def __aenter__(self) -> UnfinishedBodies:
        """Returns when each body has been sent, or answered before that."""
        await asyncio.gather(*(self._client() for _ in range(self._count)))
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        for writer in self._open:
            writer.transport.abort()

    async def _client(self) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._open.append(writer)
        writer.write(request_head(COMPLETIONS, self._nbytes + 1))
        answer = asyncio.create_task(self._answer(reader))
        self._tasks.append(answer)
        body = asyncio.create_task(self._send(writer))
        await asyncio.wait({answer, body}, return_when=asyncio.FIRST_COMPLETED)
        body.cancel()
        await asyncio.gather(body, return_exceptions=True)

    async def _answer(self, reader: asyncio.StreamReader) -> None:
        """It may come while the body is sent, or long after."""
        try:
            self.answers.add(await reader.read(4096))
        except ConnectionError:
            self.answers.add(b"")

    async def _send(self, writer: asyncio.StreamWriter) -> None:
        unit = b'{"prompt":"' + b"a" * (64 * 1024)
        left = self._nbytes
        while left > 0:
            writer.write(unit[:left])
            left -= len(unit)
            await writer.drain()


async def large_chats(port: int, count: int, nbytes: int) -> Answers:
    """So many chats at once, each whole and with its answer read."""
    body = large_chat(nbytes)
    answers = Answers()

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(request_head(CHAT, len(body)) + body)
            head = await reader.read(4096)
            while head and await reader.read(65536):
                pass
        except ConnectionError:
            head = b""
        finally:
            writer.close()
        answers.add(head)

    await asyncio.gather(*(client() for _ in range(count)))
    return answers
