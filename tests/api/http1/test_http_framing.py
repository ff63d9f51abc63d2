"""Where a request ends, over real sockets. What is in doubt is refused, and what follows unread."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import pytest

from server.api.http1 import connection
from server.api.http1.body import FREE_CHUNKS, MAX_CHUNK_LINE
from server.metrics.stats import Outcome
from tests.api.api_fakes import FakeEngine, saying
from tests.api.http1.socket_stories import HANGS_S, LIMITS, answer, request_bytes, running

POST = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
CHUNKED = POST + b"transfer-encoding: chunked\r\n\r\n"
SMUGGLED = b"GET /health HTTP/1.1\r\nhost: smuggled\r\n\r\n"
BODY = request_bytes().split(b"\r\n\r\n", 1)[1]


def chunks(body: bytes, size: int, extension: bytes = b"", trailers: bytes = b"") -> bytes:
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    lines = [b"%X%s\r\n%s\r\n" % (len(part), extension, part) for part in parts]
    return b"".join(lines) + b"0\r\n" + trailers + b"\r\n"


def only_answer(data: bytes) -> tuple[int, dict[str, Any]]:
    """Status and error of the one answer in ``data``."""
    assert len(re.findall(rb"HTTP/1\.1 \d", data)) == 1, data
    head, _, body = data.partition(b"\r\n\r\n")
    assert b"connection: close" in head.lower()
    return int(head.split()[1]), json.loads(body)["error"]


DOUBTFUL = [
    b"content-length: 6\r\ntransfer-encoding: chunked",
    b"transfer-encoding: chunked\r\ncontent-length: 6",
    b"Content-Length: 0\r\nTransfer-Encoding: Chunked",
    b"content-length: 0\r\ncontent-length: 0",
    b"content-length: 0\r\ncontent-length: 40",
    b"content-length: 0, 0",
    b"content-length: +0",
    b"content-length: 0x0",
    b"content-length: 1_0",
    b"content-length:",
    b"content-length: 1234567890123456789",
    b"transfer-encoding: chunked\r\ntransfer-encoding: chunked",
    b"transfer-encoding: chunked, chunked",
    b"transfer-encoding: gzip, chunked",
    b"transfer-encoding: identity",
    b"transfer-encoding: xchunked",
    b"transfer-encoding: \x0bchunked",
    b"transfer-encoding:",
    b"transfer-encoding : chunked",
    b"x: y\r\n transfer-encoding: chunked",
    b"x: y\ntransfer-encoding: chunked",
    b"x: y\rtransfer-encoding: chunked",
    b"x: y\0",
    b"host: y",
]


async def test_a_head_whose_body_ends_in_doubt_is_refused_and_nothing_after_it_answered() -> None:
    async with running(FakeEngine()) as (port, state):
        for fields in DOUBTFUL:
            data = POST + fields + b"\r\n\r\n" + b"0\r\n\r\n" + SMUGGLED
            status, error = only_answer(await answer(port, data))
            assert (status, error["code"]) == (400, "invalid_request"), fields
        assert state.metrics.http == [("unmatched", "OTHER", 400)] * len(DOUBTFUL)


OTHER_KINDS = [
    (b"GET /health\r\n\r\n", "HTTP/0.9"),
    (b"GET /health HTTP/1.2\r\nhost: x\r\n\r\n", "version"),
    (b"GET /health HTTP/2.0\r\nhost: x\r\n\r\n", "HTTP"),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "HTTP/2"),
    (b"get /health HTTP/1.1\r\nhost: x\r\n\r\n", "method"),
    (b"GET health HTTP/1.1\r\nhost: x\r\n\r\n", "url"),
    (b"GET ftp://x/health HTTP/1.1\r\nhost: x\r\n\r\n", "target"),
    (b"GET /h#ealth HTTP/1.1\r\nhost: x\r\n\r\n", "target"),
    ("GET /hé HTTP/1.1\r\nhost: x\r\n\r\n".encode(), "url"),
    (b"GET /health HTTP/1.1\nhost: x\n\n", "CRLF"),
    (b"POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", "Transfer-Encoding"),
    (b"CONNECT x:80 HTTP/1.1\r\nhost: x\r\n\r\n", "target"),
]


async def test_a_head_of_another_kind_is_refused_with_the_reason() -> None:
    async with running(FakeEngine()) as (port, _):
        for data, words in OTHER_KINDS:
            status, error = only_answer(await answer(port, data + SMUGGLED))
            assert (status, words in error["message"]) == (400, True), (data, error)


MALFORMED = [
    b"zz\r\n",
    b"0x5\r\nhello\r\n",
    b"+5\r\nhello\r\n",
    b"-5\r\n",
    b"5 \r\nhello\r\n",
    b"\r\n",
    b"5\nhello\r\n",
    b"5\r\nhello\n",
    b"5\r\nhelloworld\r\n",
    b"5;" + b"x" * MAX_CHUNK_LINE + b"\r\nhello\r\n",
    b"5;\x01\r\nhello\r\n",
    b"ffffffffffffffffff\r\n",
    b"0\r\nno field\r\n\r\n",
    b"0\r\ncontent-length: 5\r\n\r\n",
    b"0\r\nhost: x\n\r\n\r\n",
]


async def test_a_malformed_chunk_is_an_invalid_request_and_no_abort() -> None:
    engine = FakeEngine()
    async with running(engine) as (port, state):
        for body in MALFORMED:
            data = CHUNKED + chunks(BODY[:9], 9)[:-5] + body + SMUGGLED
            status, error = only_answer(await answer(port, data))
            assert (status, error["code"]) == (400, "invalid_request"), body
            record = state.metrics.records[-1]
            assert (record.outcome, record.status) == (Outcome.INVALID, 400), body
        assert len(state.metrics.records) == len(MALFORMED)
        assert not engine.seen


async def test_a_malformed_chunk_is_invalid_even_if_its_sender_has_gone() -> None:
    async with running(FakeEngine()) as (port, state):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(CHUNKED + b"zz\r\n")
        writer.close()
        async with asyncio.timeout(HANGS_S):
            while not state.metrics.records:
                await asyncio.sleep(0)
        assert state.metrics.records[0].outcome is Outcome.INVALID


@pytest.mark.parametrize("before", [b"", chunks(BODY, 7)[:-5]])
async def test_an_announced_chunk_past_the_limit_is_refused_before_it_comes(before: bytes) -> None:
    # It would end with 408 if it were the chunk's bytes that are counted.
    async with running(FakeEngine()) as (port, _):
        announced = b"%x\r\n" % (LIMITS.max_body_bytes + 1)
        status, error = only_answer(await answer(port, CHUNKED + before + announced))
        assert (status, error["code"]) == (413, "request_too_large")


@pytest.mark.parametrize(
    ("trailers", "status"),
    [(b"x: y\r\n" * 20, 200), (b"x: y\r\n" * 200, 431), (b"x: %s\r\n" % (b"y" * 5000), 400)],
)
async def test_trailers_are_bounded(trailers: bytes, status: int) -> None:
    async with running(FakeEngine()) as (port, _):
        head = POST + b"connection: close\r\ntransfer-encoding: chunked\r\n\r\n"
        data = await answer(port, head + chunks(BODY, 50, trailers=trailers))
        assert int(data.split()[1]) == status


async def test_a_body_of_tiny_chunks_is_served_while_it_is_small_and_refused_when_it_is_not():
    """A client that writes without a buffer is no attacker; thousands of writes are too many."""
    async with running(FakeEngine(saying("ok"))) as (port, state):
        head = POST + b"connection: close\r\ntransfer-encoding: chunked\r\n\r\n"
        assert b" 200 " in await answer(port, head + chunks(BODY, 1))
        padded = BODY + b" " * (2 * FREE_CHUNKS)
        assert b" 200 " in await answer(port, head + chunks(padded, 8))
        status, error = only_answer(await answer(port, head + chunks(padded, 1)))
        assert (status, error["code"]) == (400, "invalid_request")
        assert str(FREE_CHUNKS) in error["message"]
        assert [record.outcome for record in state.metrics.records][-1] is Outcome.INVALID


@pytest.mark.parametrize("piece", [1, 5, 4096])
async def test_chunks_in_any_pieces_are_read_and_the_next_request_after_them(piece: int) -> None:
    engine = FakeEngine(saying("ok"))
    async with running(engine) as (port, _):
        data = b"\r\n" + CHUNKED + chunks(BODY, 11, b";a=b", b"x-sum: 1\r\n")
        data += b"GET http://x/health?a=b HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for at in range(0, len(data), piece):
            writer.write(data[at : at + piece])
            await asyncio.sleep(0)
        back = await asyncio.wait_for(reader.read(), HANGS_S)
        writer.close()
        assert back.count(b"HTTP/1.1 200 ") == 2
        assert back.endswith(b'{"status":"ok"}')
        assert len(engine.seen) == 1


async def test_requests_sent_together_are_answered_one_by_one() -> None:
    engine = FakeEngine(saying("ok"))
    async with running(engine) as (port, _):
        data = b"".join(request_bytes(max_tokens=count) for count in (3, 4, 5)) + SMUGGLED
        data += SMUGGLED.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")
        back = await answer(port, data)
        assert back.count(b"HTTP/1.1 200 ") == 5
        assert [request.sampling.max_tokens for request in engine.seen] == [3, 4, 5]


async def test_an_upgrade_that_is_not_offered_is_answered_as_if_not_asked_for() -> None:
    """Java's client asks for h2c with every first request, also with one that has a body."""
    async with running(FakeEngine(saying("ok"))) as (port, _):
        fields = b"connection: upgrade, http2-settings, close\r\nupgrade: h2c\r\n"
        data = request_bytes().replace(b"host: x\r\n", b"host: x\r\n" + fields)
        assert (await answer(port, data)).startswith(b"HTTP/1.1 200 ")


async def test_a_client_that_expects_100_is_told_to_go_on_only_if_its_body_is_wanted() -> None:
    async with running(FakeEngine(saying("ok"))) as (port, _):
        head, body = request_bytes().split(b"\r\n\r\n", 1)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head + b"\r\nexpect: 100-continue\r\nconnection: close\r\n\r\n")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(body)
        assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
        writer.close()
        # Whether a body follows a refusal is the client's choice: the connection ends with it.
        size = b"content-length: %d\r\n" % (LIMITS.max_body_bytes + 1)
        data = POST + size + b"expect: 100-continue\r\n\r\n" + SMUGGLED
        assert only_answer(await answer(port, data))[0] == 413


async def test_a_stream_for_http_1_0_has_no_chunks() -> None:
    async with running(FakeEngine(saying("ok"))) as (port, _):
        data = request_bytes(stream=True).replace(b"HTTP/1.1", b"HTTP/1.0")
        head, _, body = (await answer(port, data)).partition(b"\r\n\r\n")
        assert b" 200 " in head
        assert b"transfer-encoding" not in head
        assert body.startswith(b"data: {")
        assert body.endswith(b"data: [DONE]\n\n")


async def test_a_refused_body_is_thrown_away_and_the_connection_kept() -> None:
    async with running(FakeEngine()) as (port, _):
        size = LIMITS.max_body_bytes + 1
        data = POST + b"content-length: %d\r\n\r\n" % size + b"x" * size
        data += SMUGGLED.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")
        back = await answer(port, data)
        assert b" 413 " in back.split(b"\r\n")[0]
        assert back.endswith(b'{"status":"ok"}')


async def test_what_is_thrown_away_is_counted_for_each_request_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    size = LIMITS.max_body_bytes + 1
    monkeypatch.setattr(connection, "MAX_UNREAD_BYTES", size * 3 // 2)

    async with running(FakeEngine()) as (port, _):
        refused = POST + b"content-length: %d\r\n\r\n" % size + b"x" * size
        last = SMUGGLED.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")
        back = await answer(port, 12 * refused + last)
        assert back.count(b"HTTP/1.1 413 ") == 12
        assert back.endswith(b'{"status":"ok"}')


async def test_of_a_refused_body_in_chunks_nobody_waits_for_the_end() -> None:
    async with running(FakeEngine()) as (port, _):
        head = b"POST /nowhere HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
        assert only_answer(await answer(port, head + b"5\r\nhe"))[0] == 404


async def test_one_deadline_counts_for_head_and_body_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Bytes that come one by one start no new time."""
    started: list[float] = []

    async with running(FakeEngine(), receive_timeout_s=0.75) as (port, _):
        loop = asyncio.get_running_loop()
        later = loop.call_later

        def noted(delay: float, *args: Any, **kwargs: Any) -> asyncio.TimerHandle:
            started.append(delay)
            return later(delay, *args, **kwargs)

        monkeypatch.setattr(loop, "call_later", noted)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for byte in request_bytes()[:-1]:
            writer.write(bytes((byte,)))
            await asyncio.sleep(0)
        assert started.count(0.75) == 1
        back = await asyncio.wait_for(reader.read(), HANGS_S)
        assert only_answer(back)[1]["code"] == "request_timeout"
        writer.close()
