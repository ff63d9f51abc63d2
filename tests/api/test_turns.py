"""What one turn of the loop handles beside heavy clients. Counted, not timed."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from api_fakes import FakeEngine, saying
from socket_stories import request_bytes, run, until

from server.api.http1.accept import ACCEPTS, Acceptor
from server.api.http1.body import (
    FREE_CHUNKS,
    MIN_MEAN_CHUNK,
    PASS_BYTES,
    PASS_CHUNKS,
    ChunkedBody,
    LengthBody,
)
from server.api.http1.connection import Connection
from server.api.http1.turns import FULL_READ, PASSES, SMALL_READ, TURN_READ_BYTES, Turns
from server.engine.request import EngineRequest
from server.errors import ErrorCode, QuireError
from tests.soak.heavy_clients import ChunkSender, GoodClient

TURNS_OF_A_PROBE = 40  # to connect, ask and be answered, client and server in one loop


class Count:
    """Counts, for each turn of the loop, what the server handles in it; keeps the most."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.turns = 0
        self.most: Counter[str] = Counter()
        self.sum: Counter[str] = Counter()
        self._now: Counter[str] = Counter()
        self._patch = monkeypatch
        self._wrap(ChunkedBody, "_begin_chunk", "chunks", lambda *_: 1)
        self._wrap(Connection, "_begin", "messages", lambda *_: 1)
        self._wrap(Connection, "work", "passes", lambda *_: 1)
        self._wrap(Turns, "taken", "read", lambda _, nbytes: nbytes)
        self._wrap(Acceptor, "_join", "accepted", lambda *_: 1)
        for reader in (ChunkedBody, LengthBody):
            self._wrap(reader, "read", "bytes", None)

    def _wrap(self, of: type, name: str, what: str, amount: Any) -> None:
        inner = getattr(of, name)

        def counted(*args: Any) -> Any:
            result = inner(*args)
            self._now[what] += amount(*args) if amount else len(result)
            return result

        self._patch.setattr(of, name, counted)

    def start(self) -> None:
        """From the running loop: each of its rounds is one turn."""
        self._now.clear()
        loop: Any = asyncio.get_running_loop()
        once = loop._run_once

        def run_once() -> None:
            once()
            self.turns += 1
            self.sum.update(self._now)
            for what, count in self._now.items():
                self.most[what] = max(self.most[what], count)
            self._now.clear()

        self._patch.setattr(loop, "_run_once", run_once)

    async def turns_of(self, client: GoodClient) -> int:
        before = self.turns
        assert await client.ask() == 200
        return self.turns - before

    def check(self, connections: int) -> None:
        assert self.most["passes"] <= PASSES
        assert self.most["messages"] <= PASSES
        assert self.most["chunks"] <= PASSES * PASS_CHUNKS
        assert self.most["bytes"] <= PASSES * PASS_BYTES
        assert self.most["read"] <= TURN_READ_BYTES + FULL_READ + connections * SMALL_READ
        assert self.most["accepted"] <= ACCEPTS


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch) -> Count:
    return Count(monkeypatch)


def test_ten_clients_of_one_byte_chunks_beside_a_good_one(count: Count) -> None:
    async def story(port: int, state: Any) -> None:
        count.start()
        heavy = [ChunkSender("127.0.0.1", port, size=1) for _ in range(10)]
        good = GoodClient("127.0.0.1", port)
        storm = asyncio.gather(*(client.run(bodies=2) for client in heavy))
        turns = [await count.turns_of(good)]
        while not storm.done():
            turns.append(await count.turns_of(good))
        await storm
        count.check(connections=11)
        assert max(turns) <= TURNS_OF_A_PROBE
        assert len(turns) > 3
        # Each body is refused at the first chunk too many, and is no longer read.
        assert sum((client.statuses for client in heavy), Counter()) == {400: 20}
        assert count.sum["chunks"] == 20 * (FREE_CHUNKS * MIN_MEAN_CHUNK // (MIN_MEAN_CHUNK - 1))

    run(FakeEngine(), story, max_body_bytes=2**23, max_connections=16, receive_timeout_s=60.0)


def test_many_bodies_of_allowed_chunks_beside_a_good_client(count: Count) -> None:
    """As many chunks as nobody refuses: they wait for their turns."""

    async def story(port: int, state: Any) -> None:
        count.start()
        heavy = [ChunkSender("127.0.0.1", port, 64, body_bytes=64 * 2000) for _ in range(40)]
        good = GoodClient("127.0.0.1", port)
        storm = asyncio.gather(*(client.run(bodies=1) for client in heavy))
        turns = [await count.turns_of(good)]
        while not storm.done():
            turns.append(await count.turns_of(good))
        await storm
        count.check(connections=41)
        assert max(turns) <= TURNS_OF_A_PROBE
        assert count.most["chunks"] > PASS_CHUNKS  # turns were shared
        assert count.sum["chunks"] == 40 * 2001
        assert sum((client.statuses for client in heavy), Counter()) == {400: 40}  # blank JSON

    run(FakeEngine(), story, max_body_bytes=2**20, max_connections=64, receive_timeout_s=60.0)


def test_a_turn_begins_so_many_requests_whoever_sends_them(count: Count) -> None:
    async def story(port: int, state: Any) -> None:
        opened = [await asyncio.open_connection("127.0.0.1", port) for _ in range(64)]
        count.start()
        for _, writer in opened:
            writer.write(request_bytes(stream=True, max_tokens=2))
        for reader, _ in opened:
            assert b" 200 " in await reader.readuntil(b"\r\n")
        count.check(connections=64)
        assert count.sum["messages"] == 64
        assert count.most["messages"] == PASSES
        for _, writer in opened:
            writer.close()

    run(FakeEngine(saying("ok")), story, max_connections=64)


def test_a_connection_with_work_left_is_not_read_from(count: Count) -> None:
    """What waits in this process is bounded: the rest waits with its sender."""

    async def story(port: int, state: Any) -> None:
        count.start()
        sender = ChunkSender("127.0.0.1", port, 64, body_bytes=2**20)
        held = 0
        storm = asyncio.create_task(sender.run(bodies=1))
        while not storm.done():
            await asyncio.sleep(0)
            handled = count.sum["chunks"] * (64 + 6)
            held = max(held, count.sum["read"] - handled)
        await storm
        assert 0 < held <= 2 * FULL_READ + 1024
        assert count.sum["chunks"] == 2**14 + 1

    run(FakeEngine(), story, max_body_bytes=2**21, receive_timeout_s=60.0)


class WaitingEngine(FakeEngine):
    """Takes no request before ``go`` is set, and refuses it then."""

    def __init__(self) -> None:
        super().__init__(failure=QuireError(ErrorCode.QUEUE_FULL, "Full."))
        self.go = asyncio.Event()

    async def submit(self, requests: Sequence[EngineRequest]) -> None:
        self.seen.extend(requests)
        await self.go.wait()
        await super().submit(requests)


def test_what_follows_a_request_is_not_read_while_it_is_answered(count: Count) -> None:
    engine = WaitingEngine()

    async def story(port: int, state: Any) -> None:
        count.start()
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request_bytes())
        await until(lambda: bool(engine.seen))
        writer.write(request_bytes() * 3000)
        before = -1
        while before < count.sum["read"]:
            before = count.sum["read"]
            for _ in range(50):
                await asyncio.sleep(0)
        assert count.sum["messages"] == 1
        assert FULL_READ <= before <= 2 * FULL_READ + 1024
        writer.transport.abort()
        engine.go.set()

    run(engine, story)
