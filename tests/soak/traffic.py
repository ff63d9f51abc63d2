"""The traffic of a soak: requests of every kind, one in ten from a client that crashes.

Every request that the server has taken is counted here, one by one, so that the server's own count
can be held to it. A good client's is taken when an answer to it has come. A client that crashes
learns that its own is, before it goes: it sends its head with ``Expect: 100-continue``, and the
server says 100 when it reads the body; or it has seen the beginning of a stream. A head that is cut
short is no request, and counts as none.

Half of those that crash are cut off (a reset), half close their socket, as the kernel does for a
process that was killed.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from loadtest.client.connection import Address, HttpClient, request_head
from loadtest.client.exchange import Exchange
from loadtest.stats.records import read_exchange

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
_CRASHING, _INVALID, _CANARIES = 0.10, 0.03, 0.02  # shares of all requests
_CANARY = {"prompt": "def add(a, b):\n", "max_tokens": 16, "temperature": 0, "ignore_eos": True}
_WORDS = ("def", "return", "class", "import", "for", "if", "self", "x", "(", ")", ":", "0", "None")
_BAD: tuple[bytes, ...] = (
    b'{"prompt": "cut',
    b"[]",
    b'{"prompt": 7}',
    b'{"prompt": "x", "messages": 1, "max_tokens": -1}',
    b'{"prompt": "x", "temperature": "hot"}',
    b"\x00\xff\xfe",
)
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_HANGS_S = 120.0
_AT_ONCE = 8


@dataclass
class Counts:
    """What was sent, and what the clients saw of it."""

    submitted: Counter[str] = field(default_factory=Counter)  # by route
    kinds: Counter[str] = field(default_factory=Counter)
    answered: int = 0
    invalid: int = 0
    overloaded: int = 0
    crashed: int = 0  # the server had taken the request, its client went
    problems: list[str] = field(default_factory=list)


def body_of(draw: random.Random) -> tuple[str, dict[str, Any]]:
    """A route, and a request that it serves."""
    text = " ".join(draw.choice(_WORDS) for _ in range(draw.randint(3, 60)))
    body: dict[str, Any] = {"max_tokens": draw.randint(1, 48), "stream": draw.random() < 0.5}
    if draw.random() < 0.7:
        body |= {"temperature": draw.uniform(0.2, 1.5), "top_p": 0.9, "seed": draw.randrange(2**31)}
    if draw.random() < 0.2:
        body["n"] = 2
    if draw.random() < 0.3:
        body["stop"] = ["\n", "return"]
    if draw.random() < 0.4:
        return CHAT, {**body, "messages": [{"role": "user", "content": text}]}
    if draw.random() < 0.3:
        body["logprobs"] = 2
    return COMPLETIONS, {**body, "prompt": text}


class Traffic:
    """``clients`` at once, each with one request at a time; the same ``seed`` sends the same."""

    def __init__(self, port: int, clients: int, seed: int) -> None:
        self._address = Address("127.0.0.1", port)
        self._clients = clients
        self._seed = seed
        self._numbers = itertools.count()
        self._canary: str | None = None
        self.counts = Counts()

    async def run(self, seconds: float) -> None:
        """Sends for so long; returns when the last request has ended and no connection is open."""
        until = time.monotonic() + seconds
        client = HttpClient(self._address, _HANGS_S)

        async def one_after_the_other() -> None:
            while time.monotonic() < until:
                await self._one(client, next(self._numbers))

        try:
            await asyncio.gather(*(one_after_the_other() for _ in range(self._clients)))
        finally:
            await client.close()

    async def one_of_each(self) -> None:
        """Before anything is compared: what is done for the first time is no growth."""
        client = HttpClient(self._address, _HANGS_S)
        draw = random.Random(self._seed)
        chat = {"messages": [{"role": "user", "content": "def"}], "max_tokens": 2}
        await asyncio.gather(*(self._whole(client, CHAT, chat) for _ in range(_AT_ONCE)))
        await self._whole(client, CHAT, {**chat, "stream": True})
        for stream in (False, True):
            body = {"prompt": "def", "max_tokens": 2, "stream": stream}
            await self._whole(client, COMPLETIONS, body)
        await self._invalid(client, draw)
        for crash in self._crashes:
            for cut_off in (False, True):
                await self._crash(crash, draw, cut_off)
        await client.close()

    async def _one(self, client: HttpClient, number: int) -> None:
        draw = random.Random(f"{self._seed}:{number}")
        place = draw.random()
        if place < _CRASHING:
            crash = self._crashes[number % len(self._crashes)]
            await self._crash(crash, draw, draw.random() < 0.5)
        elif place < _CRASHING + _INVALID:
            await self._invalid(client, draw)
        elif place < _CRASHING + _INVALID + _CANARIES:
            text = await self._whole(client, COMPLETIONS, _CANARY)
            self._canary = self._canary or text
            if text != self._canary:
                self._problem("canary", f"{text!r}, and before {self._canary!r}")
        else:
            await self._whole(client, *body_of(draw))

    # -- clients that stay ------------------------------------------------------------------------

    async def _whole(self, client: HttpClient, route: str, body: dict[str, Any]) -> str:
        """Its answer's text."""
        self.counts.kinds["stream" if body.get("stream") else "whole answer"] += 1
        exchange = await self._send(client, route, json.dumps(body).encode())
        record = read_exchange(exchange, index=0, start=0.0, intended=0.0)
        if record.ok:
            self.counts.answered += 1
        elif exchange.status in (429, 503):
            self.counts.overloaded += 1
        else:
            self._problem(route, f"{record.outcome}: {record.detail}")
        return record.text

    async def _invalid(self, client: HttpClient, draw: random.Random) -> None:
        self.counts.kinds["invalid"] += 1
        content = draw.choice(_BAD)
        exchange = await self._send(client, draw.choice((COMPLETIONS, CHAT)), content)
        self.counts.invalid += exchange.status == 400
        if exchange.status != 400:
            self._problem("invalid", f"{content!r}: {exchange.status} {exchange.detail}")

    async def _send(self, client: HttpClient, route: str, content: bytes) -> Exchange:
        head = request_head(self._address, "POST", route, len(content), {})
        exchange = Exchange(head, content)
        await client.send(exchange)
        self.counts.submitted[route] += exchange.status > 0
        return exchange

    # -- clients that crash -----------------------------------------------------------------------

    async def _crash(self, crash: Callable[..., Any], draw: random.Random, cut_off: bool) -> None:
        """Runs up to the crash, and crashes."""
        self.counts.kinds[f"crash: {crash.__name__.strip('_').replace('_', ' ')}"] += 1
        reader, writer = await asyncio.open_connection(self._address.host, self._address.port)
        try:
            async with asyncio.timeout(_HANGS_S):
                await crash(self, reader, writer, draw)
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            self._problem(crash.__name__, repr(error))
        if cut_off:
            found = writer.get_extra_info("socket")
            found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        writer.close()

    async def _taken(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, draw: random.Random
    ) -> bytes:
        """Sends a head; returns the body when the server has begun to read it, and b"" where it
        has refused to."""
        route, body = body_of(draw)
        content = json.dumps({**body, "max_tokens": 150, "ignore_eos": True}).encode()
        expect = {"Expect": "100-continue"}
        writer.write(request_head(self._address, "POST", route, len(content), expect))
        answer = await reader.readuntil(b"\r\n\r\n")
        self.counts.submitted[route] += 1
        if answer.startswith(b"HTTP/1.1 100 "):
            self.counts.crashed += 1
            return content
        self.counts.overloaded += 1
        if not answer.startswith(b"HTTP/1.1 503 "):
            self._problem("crash", f"no 100 and no 503: {answer[:80]!r}")
        return b""

    async def _in_the_head(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, draw: random.Random
    ) -> None:
        head = request_head(self._address, "POST", COMPLETIONS, 100, {})
        writer.write(head[: draw.randrange(1, len(head) - 2)])
        await writer.drain()

    async def _in_the_body(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, draw: random.Random
    ) -> None:
        content = await self._taken(reader, writer, draw)
        if content:
            writer.write(content[: draw.randrange(len(content) - 1)])
            await writer.drain()

    async def _before_the_answer(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, draw: random.Random
    ) -> None:
        writer.write(await self._taken(reader, writer, draw))
        await writer.drain()

    async def _in_the_stream(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, draw: random.Random
    ) -> None:
        body = {"prompt": "def", "max_tokens": 150, "ignore_eos": True, "stream": True}
        content = json.dumps(body).encode()
        writer.write(request_head(self._address, "POST", COMPLETIONS, len(content), {}) + content)
        answer = await reader.readuntil(b"\r\n\r\n")
        self.counts.submitted[COMPLETIONS] += 1
        if not answer.startswith(b"HTTP/1.1 200 "):
            self.counts.overloaded += 1
            return
        self.counts.crashed += 1
        for _ in range(draw.randint(0, 5)):  # of ten or more, however many tokens come together
            await reader.readuntil(b"\n\n")

    _crashes = (_in_the_head, _in_the_body, _before_the_answer, _in_the_stream)

    def _problem(self, where: str, what: str) -> None:
        self.counts.problems.append(f"{where}: {what}"[:300])
