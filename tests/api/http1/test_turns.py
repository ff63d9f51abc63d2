"""What one turn of the loop handles beside heavy clients. Counted, not timed."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from server.api.http import serve
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
from server.api.http1.exchange import HIGH_WATER
from server.api.http1.turns import (
    FULL_READ,
    PASSES,
    PROBE_PASSES,
    SMALL_READ,
    TURN_READ_BYTES,
    Turns,
    Work,
)
from server.api.state import HttpLimits
from server.engine.request import EngineRequest
from server.errors import ErrorCode, QuireError
from server.startup.listener import bind
from tests.api.api_fakes import FakeEngine, RecordingMetrics, saying
from tests.api.http1.socket_stories import (
    HEALTH,
    request_bytes,
    running,
    shared_by_connections,
    until,
)
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


async def quiet(count: Count) -> None:
    """Returns when the server reads no more."""
    before = -1
    while before < count.sum["read"]:
        before = count.sum["read"]
        for _ in range(50):
            await asyncio.sleep(0)


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch) -> Count:
    return Count(monkeypatch)


async def test_ten_clients_of_one_byte_chunks_beside_a_good_one(count: Count) -> None:
    async with running(FakeEngine(), max_body_bytes=2**23, max_connections=16) as (port, _):
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


async def test_many_bodies_of_allowed_chunks_beside_a_good_client(count: Count) -> None:
    """As many chunks as nobody refuses: they wait for their turns."""
    async with running(FakeEngine(), max_body_bytes=2**20, max_connections=64) as (port, _):
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


async def test_a_turn_begins_so_many_requests_whoever_sends_them(count: Count) -> None:
    async with running(FakeEngine(saying("ok")), max_connections=64) as (port, _):
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


async def test_a_probe_passes_the_requests_that_begin_with_it(count: Count) -> None:
    """It was sent last, behind ten turns' worth of them."""
    others = 10 * PASSES

    async with running(FakeEngine(saying("ok")), max_connections=others + 1) as (port, _):
        count.start()
        opened = [await asyncio.open_connection("127.0.0.1", port) for _ in range(others)]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _, other in opened:
            other.write(request_bytes(stream=True, max_tokens=2))
        writer.write(HEALTH)
        assert b" 200 " in await reader.readuntil(b"\r\n")
        assert count.sum["messages"] < others // 2
        for other, _ in opened:
            assert b" 200 " in await other.readuntil(b"\r\n")
        count.check(connections=others + 1)
        for _, closed in [*opened, (reader, writer)]:
            closed.close()


async def test_a_connection_with_work_left_is_not_read_from(count: Count) -> None:
    """What waits in this process is bounded: the rest waits with its sender."""
    async with running(FakeEngine(), max_body_bytes=2**21) as (port, _):
        count.start()
        sender = ChunkSender("127.0.0.1", port, 64, body_bytes=2**20)
        held = 0
        storm = asyncio.create_task(sender.run(bodies=1))
        while not storm.done():
            await asyncio.sleep(0)
            handled = count.sum["chunks"] * (64 + 6)
            held = max(held, count.sum["read"] - handled)
        await storm
        assert 0 < held <= FULL_READ + PASS_BYTES
        assert count.sum["chunks"] == 2**14 + 1


async def test_a_body_that_the_application_does_not_take_stays_with_its_sender(
    count: Count,
) -> None:
    size = 4 * 2**20

    go, sizes = asyncio.Event(), []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return
        await go.wait()
        more = True
        while more:
            message = await receive()
            sizes.append(len(message["body"]))
            more = message["more_body"]
        await send({"type": "http.response.start", "status": 204})
        await send({"type": "http.response.body"})

    sock = bind("127.0.0.1", 0)
    server = serve(app, HttpLimits(), RecordingMetrics(), drain_timeout_s=1)
    task = asyncio.create_task(server.serve(sockets=[sock]))
    await until(lambda: server.started)
    count.start()
    head = b"POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", sock.getsockname()[1])
    writer.write(head % size)
    await until(lambda: count.sum["messages"] == 1)
    writer.write(b"x" * size)
    await quiet(count)
    assert FULL_READ < count.sum["read"] <= HIGH_WATER + 2 * FULL_READ
    go.set()
    assert b" 204 " in await reader.read()
    assert sum(sizes) == size
    assert max(sizes) <= HIGH_WATER
    writer.close()
    server.should_exit = True
    await task


class WaitingEngine(FakeEngine):
    """Takes no request before ``go`` is set, and refuses it then."""

    def __init__(self) -> None:
        super().__init__(failure=QuireError(ErrorCode.QUEUE_FULL, "Full."))
        self.go = asyncio.Event()

    async def submit(self, requests: Sequence[EngineRequest]) -> None:
        self.seen.extend(requests)
        await self.go.wait()
        await super().submit(requests)


async def test_what_follows_a_request_is_not_read_while_it_is_answered(count: Count) -> None:
    engine = WaitingEngine()
    async with running(engine) as (port, _):
        count.start()
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request_bytes())
        await until(lambda: bool(engine.seen))
        writer.write(request_bytes() * 3000)
        await quiet(count)
        assert count.sum["messages"] == 1
        assert SMALL_READ < count.sum["read"] <= 3 * SMALL_READ
        writer.transport.abort()
        engine.go.set()


class Transport(asyncio.Transport):
    """Reads and writes nothing; tells whether it would."""

    reading = True

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


class Busy:
    """Somebody with a turn's worth of work, once."""

    queued = False

    def __init__(self, waiting: Work = Work.BODY, done: list[Work] | None = None) -> None:
        self.waiting = waiting
        self._done = [] if done is None else done

    def work(self) -> bool:
        self._done.append(self.waiting)
        return False

    def regulate(self) -> None:
        pass


def connected(loop: asyncio.AbstractEventLoop) -> tuple[Connection, Transport]:
    shared = shared_by_connections(lambda *_: asyncio.sleep(0), loop, HttpLimits())
    connection, transport = Connection(shared), Transport()
    connection.connection_made(transport)
    return connection, transport


@pytest.mark.parametrize("others", [[Work.HEAD], [Work.BODY], [Work.BODY, Work.HEAD]])
async def test_probes_go_first_with_half_of_a_turn(others: list[Work]) -> None:
    """Whoever floods a server with probes holds nobody up for ever either."""
    turns, done = Turns(asyncio.get_running_loop()), list[Work]()
    for _ in range(PASSES):
        turns.offer(Busy())  # this turn's
    for work in [*others, Work.PROBE]:
        for _ in range(2 * PASSES):
            turns.offer(Busy(work, done))
    assert not done
    await asyncio.sleep(0)
    assert done[:PROBE_PASSES] == [Work.PROBE] * PROBE_PASSES
    assert set(done[PROBE_PASSES:]) == set(others)
    assert len(done) == PASSES
    while len(done) < (len(others) + 1) * 2 * PASSES:
        await asyncio.sleep(0)
    assert Counter(done) == Counter(dict.fromkeys([*others, Work.PROBE], 2 * PASSES))


@pytest.mark.parametrize(
    ("sent", "waiting"),
    [
        (b"GET /health HTTP/1.1\r\n", Work.PROBE),
        (b"GET /metrics HTTP", Work.PROBE),
        (b"GET /healthy HTTP/1.1\r\n", Work.HEAD),
        (b"GET /v1/models HTTP/1.1\r\n", Work.HEAD),
        (b"POST /health HTTP/1.1\r\n", Work.HEAD),
        (b"GET", Work.HEAD),
        (b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 30\r\n\r\nGET /health ", Work.BODY),
    ],
)
async def test_a_probe_is_known_by_its_first_line(sent: bytes, waiting: Work) -> None:
    connection = connected(asyncio.get_running_loop())[0]
    connection.get_buffer(-1)[: len(sent)] = sent
    connection._shared.turns._passes_left = 1 if waiting is Work.BODY else 0
    connection.buffer_updated(len(sent))
    assert connection.waiting is waiting
    connection.connection_lost(None)


async def test_a_connection_that_waits_for_its_turn_is_not_read_from() -> None:
    connection, transport = connected(asyncio.get_running_loop())
    for _ in range(PASSES):
        connection._shared.turns.offer(Busy())
    connection.get_buffer(-1)[:3] = b"GET"
    connection.buffer_updated(3)
    assert not transport.reading
    while connection.queued:
        await asyncio.sleep(0)
    assert transport.reading
    connection.connection_lost(None)
