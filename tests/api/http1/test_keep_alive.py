"""A stream that has nothing to say says so from time to time, and what it says disturbs nobody."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from loadtest.client.exchange import SSEParser
from server.api.app import create_app
from server.api.routes.stream import StreamWriter
from server.api.state import HttpLimits
from server.engine.events import Event
from server.engine.request import EngineRequest
from tests.api.api_client import client_of, openai_client
from tests.api.api_fakes import FakeEngine, make_state, saying

COMMENT = b": keep-alive\n\n"
BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "ab", "max_tokens": 3},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "ab"}], "max_tokens": 3},
}


# -- the writer, by a clock of the test's ---------------------------------------------------------


class Time:
    """Passes when it is told to; who sleeps wakes in order."""

    def __init__(self) -> None:
        self.now = 0.0
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        wakes: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleepers.append((self.now + seconds, wakes))
        await wakes

    async def at(self, moment: float) -> None:
        """Lets the time pass until ``moment``, and whoever wakes by then do what it does."""
        while True:
            await _turns()
            due = [one for one in self._sleepers if one[0] <= moment and not one[1].done()]
            if not due:
                break
            first = min(due, key=lambda one: one[0])
            self._sleepers.remove(first)
            self.now = first[0]
            first[1].set_result(None)
        self.now = moment

    @property
    def waiting(self) -> int:
        return sum(not wakes.done() for _, wakes in self._sleepers)


async def _turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@dataclass
class Client:
    """What an ASGI server would be handed. While ``reads`` is unset, nothing more goes out."""

    time: Time
    reads: asyncio.Event = field(default_factory=asyncio.Event)
    got: list[tuple[float, bytes]] = field(default_factory=list)
    waiting: int = 0

    async def send(self, message: Any) -> None:
        self.waiting += 1
        await self.reads.wait()
        self.waiting -= 1
        self.got.append((self.time.now, message["body"]))


async def test_silence_is_broken_every_interval_and_an_event_counts_as_none() -> None:
    time = Time()
    client = Client(time)
    client.reads.set()
    async with StreamWriter(client.send, 15, time.clock, time.sleep) as stream:
        await time.at(40)
        await stream.write(b"event")
        await time.at(54.9)
        assert len(client.got) == 3
        await time.at(56)
        await stream.end(b"done")
        await time.at(500)
    assert client.got == [
        (15, COMMENT),
        (30, COMMENT),
        (40, b"event"),
        (55, COMMENT),
        (56, b"done"),
    ]


async def test_a_client_that_does_not_read_costs_one_comment() -> None:
    time = Time()
    client = Client(time)
    async with StreamWriter(client.send, 15, time.clock, time.sleep) as stream:
        await time.at(15_000)
        assert client.waiting == 1
        client.reads.set()
        await _turns()
        assert [body for _, body in client.got] == [COMMENT]
        await stream.end(b"done")
    assert client.got[-1][1] == b"done"


@pytest.mark.parametrize("error", [None, RuntimeError("the work failed")])
async def test_no_comment_outlives_its_stream(error: Exception | None) -> None:
    time = Time()
    client = Client(time)
    client.reads.set()
    try:
        async with StreamWriter(client.send, 15, time.clock, time.sleep):
            await time.at(16)
            if error is not None:
                raise error
    except RuntimeError as caught:
        assert caught is error
    await time.at(1000)
    assert len(client.got) == 1
    assert len(asyncio.all_tasks()) == 1


async def test_0_is_off() -> None:
    time = Time()
    client = Client(time)
    async with StreamWriter(client.send, 0, time.clock, time.sleep):
        await time.at(1e6)
        assert (client.waiting, time.waiting, len(asyncio.all_tasks())) == (0, 0, 1)


# -- through the application ----------------------------------------------------------------------


@dataclass
class Waits(FakeEngine):
    """Accepts, and gives no event until ``go`` is set: as in a queue, or when it stands still."""

    go: asyncio.Event = field(default_factory=asyncio.Event)

    async def _events(self, request: EngineRequest) -> AsyncIterator[Event]:
        await self.go.wait()
        async for event in super()._events(request):
            yield event


async def answered(engine: Waits, route: str, body: Any, after: int = 0) -> list[Any]:
    """The messages that an ASGI server is sent; the engine goes after so many comments."""
    state = make_state(engine, limits=HttpLimits(stream_keep_alive_s=0.001))
    if not after:
        engine.go.set()
    sent: list[Any] = []
    body = json.dumps({**BODIES[route], **body}).encode()
    asked = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive() -> Any:
        for message in asked:
            return message
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)
        if sum(one.get("body") == COMMENT for one in sent) == after:
            engine.go.set()

    scope = {
        "type": "http",
        "method": "POST",
        "path": route,
        "raw_path": route.encode(),
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
    }
    app = create_app(state)
    async with app.router.lifespan_context(app):
        await app(scope, receive, send)
    return sent


@pytest.mark.parametrize("route", BODIES)
async def test_comments_come_while_the_first_event_is_awaited(route: str) -> None:
    start, *bodies = await answered(Waits(), route, {"stream": True}, after=3)
    assert start["status"] == 200  # the engine has accepted, and computed nothing
    parts = [one["body"] for one in bodies]
    tokens = (b'"text":', b'"content":"')
    first = next(
        at
        for at, part in enumerate(parts)
        if any(token in part for token in tokens) and b'"role"' not in part
    )
    assert parts[:first].count(COMMENT) >= 3
    assert parts[-1].endswith(b"data: [DONE]\n\n")
    events = SSEParser().feed(b"".join(parts))
    plain = [part for part in parts if part != COMMENT]
    assert events == SSEParser().feed(b"".join(plain))  # what clients make of it
    assert events[-1] == b"[DONE]"


async def test_an_answer_that_is_no_stream_sends_nothing_ahead() -> None:
    sent = await answered(Waits(), "/v1/completions", {})
    assert [one["type"] for one in sent] == ["http.response.start", "http.response.body"]


async def test_openais_client_reads_past_comments() -> None:
    engine = FakeEngine(saying("深度学习是"), token_delay=0.01)
    state = make_state(engine, limits=HttpLimits(stream_keep_alive_s=0.001))

    seen = b""
    app = create_app(state)
    async with client_of(app) as http:

        async def keep(response: httpx.Response) -> None:
            nonlocal seen
            seen = await response.aread()

        http.event_hooks = {"response": [keep]}
        stream = await openai_client(http).completions.create(
            model="tiny", prompt="a", max_tokens=20, stream=True
        )
        assert "".join([chunk.choices[0].text async for chunk in stream]) == "深度学习是"
    assert seen.count(COMMENT) > 3
