"""Real sockets: disconnects, slow senders, slow readers, too many connections."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from starlette.types import Receive, Scope, Send

from server.api.http1.connection import Connection
from server.engine.events import Event
from server.metrics.stats import Outcome
from server.startup.listener import bind
from tests.api.api_fakes import FakeEngine, RecordingMetrics, saying
from tests.api.http1.socket_stories import (
    HANGS_S,
    HEALTH,
    LIMITS,
    answer,
    request_bytes,
    running,
    shared_by_connections,
    until,
)

DEADLINE_S = 0.3


async def test_what_is_written_leaves_at_once() -> None:
    """Without TCP_NODELAY a kept connection's first token waits 40 ms for an acknowledgement."""
    accepted: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        found = writer.get_extra_info("socket")
        accepted.set_result(found.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    sock = bind("127.0.0.1", 0)
    async with await asyncio.start_server(note, sock=sock):
        _, writer = await asyncio.open_connection("127.0.0.1", sock.getsockname()[1])
        writer.close()
        assert await accepted == 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("stage", ["queued", "first token", "mid-stream"])
async def test_leaving_aborts_within_a_step(stream: bool, stage: str) -> None:
    engine = FakeEngine(
        accept_delay=9 if stage == "queued" else 0,
        token_delay=9 if stage == "first token" else 0.01,
    )

    async with running(engine) as (port, state):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request_bytes(stream=stream))
        await until(lambda: bool(engine.open))
        if stage == "mid-stream" and stream:
            await reader.readuntil(b"data: ")
        await asyncio.sleep(0.05)
        writer.close()
        await until(lambda: not engine.open)
        await until(lambda: bool(state.metrics.records))
        assert engine.aborted == [engine.seen[0].request_id]
        (record,) = state.metrics.records
        assert record.outcome is Outcome.ABORT


@pytest.mark.parametrize(
    ("sent", "outcomes"), [(40, []), (-5, [Outcome.ABORT])], ids=["in its headers", "in its body"]
)
async def test_leaving_before_the_request_is_whole_reaches_nobody(
    sent: int, outcomes: list[Outcome]
) -> None:
    """Only a request whose headers came is one, and is counted."""
    engine = FakeEngine()
    async with running(engine) as (port, state):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request_bytes()[:sent])
        writer.close()
        await writer.wait_closed()
        await until(lambda: len(state.metrics.records) == len(outcomes))
        for _ in range(2):  # the server has turned to what came before
            assert b" 200 " in await answer(port, HEALTH)
        assert not engine.seen
        assert [record.outcome for record in state.metrics.records] == outcomes


@pytest.mark.parametrize("head", [b"", b"POST /v1/comp", b"POST /v1/completions HTTP/1.1\r\nhost:"])
async def test_headers_that_do_not_come_are_408(head: bytes) -> None:
    async with running(FakeEngine(), receive_timeout_s=DEADLINE_S) as (port, _):
        data = await answer(port, head)
        assert data.startswith(b"HTTP/1.1 408 ")
        assert json.loads(data.split(b"\r\n\r\n")[1])["error"]["code"] == "request_timeout"


async def test_headers_that_trickle_are_408_all_the_same() -> None:
    async with running(FakeEngine(), receive_timeout_s=DEADLINE_S) as (port, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        read = asyncio.create_task(reader.read())
        for index in range(100):
            writer.write(b"GET /xxxx"[index:][:1] or b"x")
            await asyncio.sleep(0.02)
            if read.done():
                break
        assert read.done()
        assert b" 408 " in read.result()
        writer.close()


async def test_headers_that_do_not_come_after_a_first_request() -> None:
    async with running(FakeEngine(), receive_timeout_s=DEADLINE_S) as (port, _):
        data = await answer(port, b"GET /health HTTP/1.1\r\nhost: x\r\n\r\nGET /hea")
        assert data.count(b"HTTP/1.1 ") == 2
        assert b"HTTP/1.1 408 " in data


async def test_a_body_that_does_not_come_is_408_and_counted() -> None:
    async with running(FakeEngine(), receive_timeout_s=DEADLINE_S) as (port, state):
        data = await answer(port, request_bytes()[:-5])
        assert data.startswith(b"HTTP/1.1 408 ")
        assert json.loads(data.split(b"\r\n\r\n")[1])["error"]["code"] == "request_timeout"
        assert [record.status for record in state.metrics.records] == [408]


async def test_a_quiet_connection_is_kept_between_requests() -> None:
    async with running(FakeEngine(), receive_timeout_s=DEADLINE_S) as (port, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(2):
            writer.write(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
            assert b" 200 " in await reader.readuntil(b'{"status":"ok"}')
            await asyncio.sleep(2 * DEADLINE_S)
        writer.close()


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"HELLO\r\n\r\n",
        b"GET / HTTP/1.1\r\nbad header\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n"
        b"content-length: 2\r\n\r\nab",
        b"GET / HTTP/1.1\r\n\r\n",
    ],
)
async def test_what_is_no_http_is_refused_in_the_same_shape(data: bytes) -> None:
    async with running(FakeEngine()) as (port, _):
        data_back = await answer(port, data)
        assert data_back.startswith(b"HTTP/1.1 400 ")
        error = json.loads(data_back.split(b"\r\n\r\n")[1])["error"]
        assert set(error) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("pause_s", [0.0, 0.02], ids=["at once", "in parts"])
@pytest.mark.parametrize("headers", [b"x: " + b"y" * 10_000, b"x: y\r\n" * 3_000])
@pytest.mark.parametrize("ends", [True, False])
async def test_headers_that_are_too_large_are_431_however_they_come(
    headers: bytes, pause_s: float, ends: bool
) -> None:
    data = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n" + headers
    data += b"\r\n\r\n" if ends else b""

    async with running(FakeEngine()) as (port, state):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for part in (data[:3000], data[3000:]):
            writer.write(part)
            await asyncio.sleep(pause_s)
        back = await asyncio.wait_for(reader.read(), HANGS_S)
        writer.close()
        assert back.startswith(b"HTTP/1.1 431 ")
        error = json.loads(back.split(b"\r\n\r\n")[1])["error"]
        assert (error["code"], error["type"]) == ("headers_too_large", "invalid_request_error")
        assert "4096" in error["message"]
        assert [status for _, _, status in state.metrics.http] == [431]


async def test_a_chunked_body_is_bounded_as_it_comes() -> None:
    async with running(FakeEngine()) as (port, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )
        for _ in range(30):
            writer.write(b"1000\r\n" + b"x" * 4096 + b"\r\n")
        await writer.drain()
        assert b" 413 " in await reader.readuntil(b"\r\n")
        writer.close()


async def test_connections_past_the_limit_are_503_and_the_others_go_on() -> None:
    async with running(FakeEngine(), max_connections=3) as (port, _):
        quiet = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
        data = await answer(port, request_bytes())
        assert data.startswith(b"HTTP/1.1 503 ")
        assert json.loads(data.split(b"\r\n\r\n")[1])["error"]["code"] == "too_many_connections"
        reader, writer = quiet[0]
        writer.write(HEALTH)
        assert b" 200 " in await reader.read()
        for _, writer in quiet:
            writer.close()


async def test_a_client_that_does_not_read_is_given_up() -> None:
    engine = FakeEngine(lambda request, choice: [97] * 200)
    async with running(engine, send_timeout_s=DEADLINE_S) as (port, state):
        _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(request_bytes(stream=True, n=16, logprobs=20, prompt=["a"] * 16))
        await until(lambda: bool(engine.open))
        await until(lambda: not engine.open)
        await until(lambda: bool(state.metrics.records))
        assert state.metrics.records[0].outcome is Outcome.ABORT
        writer.close()


async def test_a_client_that_closes_its_side_and_reads_nothing_is_given_up() -> None:
    """Its stream ends at once, and what it was sent waits for it no longer than the deadline."""
    told: list[str] = []

    async def stream(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()  # the request, which has no body
        await send({"type": "http.response.start", "status": 200, "headers": []})
        # More than the small buffers between the two take, and less than what halts writing.
        await send({"type": "http.response.body", "body": bytes(50_000), "more_body": True})
        told.append((await receive())["type"])

    loop = asyncio.get_running_loop()
    shared = shared_by_connections(stream, loop, replace(LIMITS, send_timeout_s=DEADLINE_S))
    listener = bind("127.0.0.1", 0)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    async with await loop.create_server(lambda: Connection(shared), sock=listener):
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(listener.getsockname())
            client.sendall(HEALTH)
            await until(
                lambda: any(one._transport.get_write_buffer_size() for one in shared.connections)
            )
            client.shutdown(socket.SHUT_WR)
            await until(lambda: not shared.connections)
            await until(lambda: not shared.tasks)
    assert told == ["http.disconnect"]


async def test_stopping_finishes_what_is_open() -> None:
    engine = FakeEngine(saying("深度学习是"), token_delay=0.02)
    async with running(engine) as (port, state):
        streams = [asyncio.create_task(answer(port, request_bytes(stream=True))) for _ in range(4)]
        await until(lambda: len(engine.open) == 4)
    for stream in streams:
        assert (await stream).endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    metrics: RecordingMetrics = state.metrics
    assert [record.outcome for record in metrics.records] == [Outcome.STOP] * 4


@pytest.mark.parametrize(
    ("data", "status"),
    [(b"rubbish\r\n\r\n", 400), (b"GET / HTTP/1.1\r\n", 408)],
    ids=["no HTTP", "no end of the headers"],
)
async def test_what_the_application_never_sees_is_counted(data: bytes, status: int) -> None:
    async with running(FakeEngine(), receive_timeout_s=DEADLINE_S) as (port, state):
        await answer(port, data)
        assert state.metrics.http == [("unmatched", "OTHER", status)]


async def test_a_refused_connection_is_counted() -> None:
    async with running(FakeEngine(), max_connections=1) as (port, state):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        await answer(port, request_bytes())
        assert state.metrics.http == [("unmatched", "OTHER", 503)]
        writer.close()


class BreaksInTheMiddle(FakeEngine):
    async def events(self, request_id: str) -> AsyncIterator[Event]:
        seen = 0
        async for event in super().events(request_id):
            yield event
            seen += 1
            if seen == 3:
                raise ValueError("a bug of ours")


@pytest.mark.parametrize("engine", [BreaksInTheMiddle(), FakeEngine(dies_after=2)])
async def test_whatever_fails_in_a_stream_ends_it_with_an_error_event(engine: FakeEngine) -> None:
    async with running(engine) as (port, state):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request_bytes(stream=True))
        data = await asyncio.wait_for(reader.readuntil(b"\r\n0\r\n\r\n"), HANGS_S)
        writer.close()
        assert data.startswith(b"HTTP/1.1 200 ")
        event = data.split(b"event: error\ndata: ")[1].split(b"\n\n")[0]
        assert json.loads(event)["error"]["type"] == "server_error"
        assert b"a bug of ours" not in data
        await until(lambda: len(state.metrics.records) == 1)
        assert state.metrics.records[0].outcome is Outcome.ERROR
