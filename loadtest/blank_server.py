"""A server that streams nothing of interest as cheaply as Python can: to find this client's limit.

    python -m loadtest.blank_server GAP      prints its port; serves until its input ends

Every stream gets one event each GAP seconds, from one timer for all of them.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys

from loadtest.limits import raise_file_limit

_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_TOKENS = re.compile(rb'"max_tokens":(\d+)')


def _chunk(data: bytes) -> bytes:
    event = b"data: " + data + b"\n\n"
    return b"%x\r\n%s\r\n" % (len(event), event)


_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_EVENT = _chunk(json.dumps({"choices": [{"index": 0, "text": "x"}]}).encode())
_END = (
    _chunk(json.dumps({"choices": [{"index": 0, "text": "", "finish_reason": "length"}]}).encode())
    + _chunk(b"[DONE]")
    + b"0\r\n\r\n"
)


class _Stream(asyncio.Protocol):
    def __init__(self, streams: dict[_Stream, int]) -> None:
        self._streams = streams
        self._received = b""
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if isinstance(transport, asyncio.Transport):
            self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if not found or (length is not None and len(body) < int(length[1])):
            return
        self._received = b""
        tokens = _TOKENS.search(body)
        if self.transport is not None:
            self.transport.write(_HEAD)
            self._streams[self] = int(tokens[1]) if tokens else 1

    def connection_lost(self, error: Exception | None) -> None:
        self._streams.pop(self, None)


async def _tick(streams: dict[_Stream, int], gap: float) -> None:
    loop = asyncio.get_running_loop()
    due = loop.time()
    while True:
        due += gap
        await asyncio.sleep(due - loop.time())
        for stream, left in list(streams.items()):
            if stream.transport is None:
                continue
            if left:
                stream.transport.write(_EVENT)
                streams[stream] = left - 1
            else:
                stream.transport.write(_END)
                del streams[stream]


async def main(gap: float) -> None:
    raise_file_limit()
    streams: dict[_Stream, int] = {}
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Stream(streams), "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    ticking = asyncio.create_task(_tick(streams, gap))
    await loop.run_in_executor(None, sys.stdin.read)
    ticking.cancel()


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1])))
