"""A server that streams nothing of interest as cheaply as Python can: to find this client's limit.

    python -m loadtest.capacity.null_server GAP      prints its port; serves until its input ends

Every stream gets one event each GAP seconds, all from one timer, as a server's step gives them. An
event's text is the time (perf_counter) at which it was written. For each line that this server
reads it says how it fared since the line before: its CPU, and by how much the last stream of a step
was late (99th percentile).
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time

from loadtest.client.process import raise_file_limit

_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_TOKENS = re.compile(rb'"max_tokens":(\d+)')


def _chunk(data: bytes) -> bytes:
    event = b"data: " + data + b"\n\n"
    return b"%x\r\n%s\r\n" % (len(event), event)


_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_EVENT = _chunk(b'{"choices":[{"index":0,"text":"%018.6f "}]}' % 0.0)  # each as long as this
_EVENT_AT = _EVENT.replace(b"%018.6f" % 0.0, b"%018.6f")
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


class _Fare:
    """What a tick took, and when one looked last."""

    def __init__(self) -> None:
        self._late: list[float] = []
        self._looked, self._cpu = time.perf_counter(), time.process_time()

    def note(self, late: float) -> None:
        self._late.append(late)

    def line(self) -> str:
        """JSON since the last line: ``cpu`` seconds a second, ``late_p99`` seconds."""
        now, cpu = time.perf_counter(), time.process_time()
        late = sorted(self._late) or [0.0]
        fare = {
            "cpu": (cpu - self._cpu) / (now - self._looked),
            "late_p99": late[round((len(late) - 1) * 0.99)],
        }
        self._late, self._looked, self._cpu = [], now, cpu
        return json.dumps(fare)


async def _tick(streams: dict[_Stream, int], gap: float, fare: _Fare) -> None:
    loop = asyncio.get_running_loop()
    due = loop.time()
    while True:
        due += gap
        await asyncio.sleep(due - loop.time())
        for stream, left in list(streams.items()):
            if stream.transport is None:
                continue
            if left:
                stream.transport.write(_EVENT_AT % time.perf_counter())
                streams[stream] = left - 1
            else:
                stream.transport.write(_END)
                del streams[stream]
        if streams:
            fare.note(loop.time() - due)


async def main(gap: float) -> None:
    raise_file_limit()
    streams: dict[_Stream, int] = {}
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Stream(streams), "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    fare = _Fare()
    ticking = asyncio.create_task(_tick(streams, gap, fare))
    while await loop.run_in_executor(None, sys.stdin.readline):
        print(fare.line(), flush=True)
    ticking.cancel()


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1])))
