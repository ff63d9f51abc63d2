"""Heads and bodies in random pieces: what is read does not depend on how it came."""

from __future__ import annotations

import random

import pytest

from server.api.http1.body import PASS_BYTES, PASS_CHUNKS, BodyReader, ChunkedBody, LengthBody
from server.api.http1.head import HeadReader
from server.errors import QuireError

HEADS = (
    b"POST /v1/completions?a=b HTTP/1.1\r\nhost: x\r\ncontent-length: 12\r\nx:\t y \r\n\r\n",
    b"\r\nGET http://x/health HTTP/1.1\r\nHost: x\r\nconnection: close\r\n\r\n",
    b"POST / HTTP/1.1\r\nhost: x\r\nTransfer-Encoding: chunked\r\nexpect: 100-continue\r\n\r\n",
)
ODD_BYTES = b"\r\n\0\t :;,aZ09\x80\xff"


def pieces(data: bytes, rng: random.Random) -> list[bytes]:
    cuts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.randrange(8)))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def verdict(parts: list[bytes]) -> object:
    """The head that ``parts`` hold, None where it is not whole, or that it was refused."""
    reader, data = HeadReader(400), bytearray()
    for part in parts:
        data += part
        try:
            head = reader.read(data)
        except QuireError as error:
            return error.code
        if head is not None:
            return head
    return None


def test_a_mutated_head_is_taken_or_refused_however_it_comes() -> None:
    rng = random.Random(5)
    taken = 0
    for _ in range(2000):
        data = bytearray(rng.choice(HEADS))
        for _ in range(rng.randrange(3)):
            data[rng.randrange(len(data))] = rng.choice(ODD_BYTES)
        whole = verdict([bytes(data)])
        assert verdict(pieces(bytes(data), rng)) == whole, bytes(data)
        taken += hasattr(whole, "method")
    assert 500 < taken < 1900


def read_all(reader: BodyReader, parts: list[bytes], rng: random.Random) -> bytes:
    data, body = bytearray(), b""
    for part in parts:
        data += part
        while not reader.complete:
            room = rng.choice((1, 7, 300, PASS_BYTES))
            got = reader.read(data, room)
            assert len(got) <= min(room, PASS_BYTES) + 2
            body += got
            if reader.starved:
                break
    assert reader.complete
    assert data == b"next"
    return body


@pytest.mark.parametrize("chunked", [True, False])
def test_a_body_is_the_same_in_any_pieces(chunked: bool) -> None:
    rng = random.Random(7)
    for _ in range(300):
        body = rng.randbytes(rng.randrange(1, 3000))
        reader: BodyReader = ChunkedBody(3000, 400) if chunked else LengthBody(len(body))
        data = as_chunks(body, rng) if chunked else body
        assert read_all(reader, pieces(data + b"next", rng), rng) == body


def as_chunks(body: bytes, rng: random.Random) -> bytes:
    data = b""
    while body:
        size = rng.choice((1, 2, 16, 255, 1000))
        part, body = body[:size], body[size:]
        size_text = rng.choice((b"%x", b"%X", b"000%x")) % len(part)
        data += size_text + rng.choice((b"", b";a", b';a="b;c"')) + b"\r\n" + part + b"\r\n"
    return data + b"0\r\n" + b"x: y\r\n" * rng.randrange(3) + b"\r\n"


def test_a_pass_has_so_many_chunks_and_bytes() -> None:
    reader, data = ChunkedBody(10_000, 400), bytearray(b"1\r\nx\r\n" * (2 * PASS_CHUNKS))
    assert reader.read(data, PASS_BYTES) == b"x" * PASS_CHUNKS
    assert not reader.starved
    assert reader.read(data, PASS_BYTES) == b"x" * PASS_CHUNKS
    large = LengthBody(3 * PASS_BYTES)
    assert len(large.read(bytearray(3 * PASS_BYTES), 10**9)) == PASS_BYTES
    assert not large.starved
