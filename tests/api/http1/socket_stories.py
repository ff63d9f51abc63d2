"""A real server in this process, and clients that write bytes to it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from server.api.app import create_app
from server.api.http import serve
from server.api.http1.places import Places
from server.api.http1.shared import Shared
from server.api.http1.turns import Turns
from server.api.state import HttpLimits
from server.startup.listener import bind
from tests.api.api_fakes import FakeEngine, RecordingMetrics, make_state

HANGS_S = 60  # ends a test that hangs: no measure of a server that is slow
# Deadlines that no busy machine meets by chance. A test of a deadline gives its own.
LIMITS = HttpLimits(
    max_body_bytes=100_000, max_header_bytes=4096, receive_timeout_s=HANGS_S,
    send_timeout_s=HANGS_S, max_connections=8,
)  # fmt: skip
HEALTH = b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"


@asynccontextmanager
async def running(engine: FakeEngine, **changes: Any) -> AsyncIterator[tuple[int, Any]]:
    """The port and the state of a server over ``engine``; ``changes`` are to its limits."""
    state = make_state(engine, limits=replace(LIMITS, **changes), chat_template=None)
    sock = bind("127.0.0.1", 0)
    server = serve(create_app(state), state.limits, state.metrics, drain_timeout_s=5)
    task = asyncio.create_task(server.serve(sockets=[sock]))
    while not server.started:
        await asyncio.sleep(0.005)
    try:
        yield sock.getsockname()[1], state
    finally:
        server.should_exit = True
        await task


def shared_by_connections(app: Any, loop: asyncio.AbstractEventLoop, limits: HttpLimits) -> Shared:
    """What connections of a server of ``app`` share, where a test makes them itself."""
    return Shared(
        app=app,
        limits=limits,
        metrics=RecordingMetrics(),
        loop=loop,
        turns=Turns(loop),
        places=Places(limits, loop.time),
        connections=set(),
        tasks=set(),
        default_headers=list,
    )


def request_bytes(**changes: Any) -> bytes:
    body = json.dumps(
        {"model": "tiny", "prompt": "a", "max_tokens": 200, "temperature": 0, **changes}
    ).encode()
    return b"%s%d\r\n\r\n%s" % (
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"content-length: ",
        len(body),
        body,
    )


async def answer(port: int, data: bytes) -> bytes:
    """All that comes back until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    try:
        return await asyncio.wait_for(reader.read(), HANGS_S)
    finally:
        writer.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(HANGS_S):
        while not condition():
            await asyncio.sleep(0.005)
