"""A stream that has nothing to say says so from time to time, and what it says disturbs nobody."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import openai
import pytest

from loadtest.client.exchange import SSEParser
from server.api.app import create_app
from server.api.routes.stream import StreamWriter
from server.api.state import ApiState, HttpLimits
from server.engine.events import Event
from server.engine.request import EngineRequest
from tests.api.api_client import client_of
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


def test_silence_is_broken_every_interval_and_an_event_counts_as_none() -> None:
    async def story() -> list[tuple[float, bytes]]:
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
        return client.got

    assert asyncio.run(story()) == [
        (15, COMMENT),
        (30, COMMENT),
        (40, b"event"),
        (55, COMMENT),
        (56, b"done"),
    ]


def test_a_client_that_does_not_read_costs_one_comment() -> None:
    async def story() -> None:
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

    asyncio.run(story())


@pytest.mark.parametrize("error", [None, RuntimeError("the work failed")])
def test_no_comment_outlives_its_stream(error: Exception | None) -> None:
    async def story() -> None:
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

    asyncio.run(story())


def test_0_is_off() -> None:
    async def story() -> None:
        time = Time()
        client = Client(time)
        async with StreamWriter(client.send, 0, time.clock, time.sleep):
            await time.at(1e6)
            assert (client.waiting, time.waiting, len(asyncio.all_tasks())) == (0, 0, 1)

    asyncio.run(story())


# -- through the application ----------------------------------------------------------------------


@dataclass
class Waits(FakeEngine):
    """Accepts, and gives no event until ``go`` is set: as in a queue, or when it stands still."""

    go: asyncio.Event = field(default_factory=asyncio.Event)

    async def _events(self, request: EngineRequest) -> AsyncIterator[Event]:
        await self.go.wait()
        async for event in super()._events(request):
            yield event


async def answered(state: ApiState, route: str, body: Any, go: asyncio.Event, after: int) -> Any:
    """The messages that an ASGI server is sent; after so many comments the engine may ``go``."""
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
            go.set()

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
def test_comments_come_while_the_first_event_is_awaited(route: str) -> None:
    async def story() -> Any:
        engine = Waits()
        limits = HttpLimits(stream_keep_alive_s=0.001)
        body = {"stream": True}
        return await answered(make_state(engine, limits=limits), route, body, engine.go, 3)

    start, *bodies = asyncio.run(story())
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


def test_an_answer_that_is_no_stream_sends_nothing_ahead() -> None:
    async def story() -> Any:
        engine = Waits()
        engine.go.set()
        limits = HttpLimits(stream_keep_alive_s=0.001)
        return await answered(
            make_state(engine, limits=limits), "/v1/completions", {}, engine.go, 1
        )

    assert [one["type"] for one in asyncio.run(story())] == [
        "http.response.start",
        "http.response.body",
    ]


def test_openais_client_reads_past_comments() -> None:
    engine = FakeEngine(saying("深度学习是"), token_delay=0.01)
    state = make_state(engine, limits=HttpLimits(stream_keep_alive_s=0.001))

    async def story() -> None:
        seen = b""
        app = create_app(state)
        async with client_of(app) as http:

            async def keep(response: httpx.Response) -> None:
                nonlocal seen
                seen = await response.aread()

            http.event_hooks = {"response": [keep]}
            client = openai.AsyncOpenAI(
                base_url="http://test/v1", api_key="none", http_client=http, max_retries=0
            )
            stream = await client.completions.create(
                model="tiny", prompt="a", max_tokens=20, stream=True
            )
            assert "".join([chunk.choices[0].text async for chunk in stream]) == "深度学习是"
        assert seen.count(COMMENT) > 3

    asyncio.run(story())
