"""What requests make the API hold: within the budget, refused past it, given back for certain."""

from __future__ import annotations

import asyncio
import json
import sys
import tracemalloc
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from starlette.types import Message, Scope

from server.api.app import create_app
from server.api.body import Body, parse_object
from server.api.json_shape import JsonLimits, measure
from server.api.sizes import counting_bytes, held_bytes, parsing_bytes
from server.api.state import ModelCard
from server.api.trace import ClientDisconnected
from server.errors import ErrorCode, QuireError
from server.host_budget import HostBudget, Use
from server.metrics.stats import Outcome
from tests.api.api_client import with_client
from tests.api.api_fakes import FakeEngine, make_state
from tests.soak.heavy_bodies import BODIES

MIB = 1024 * 1024
HEADERS = {"content-type": "application/json"}
CARD = ModelCard("tiny", 1, vocab_size=300, max_model_len=300_000, kv_capacity_tokens=10**6)
GOOD = {"prompt": "a", "max_tokens": 3}


def is_empty(state: Any) -> bool:
    return not any(state.budget.used.values())


def scope(announced: int | None) -> Scope:
    headers = [] if announced is None else [(b"content-length", str(announced).encode())]
    return {"type": "http", "headers": headers}


def arriving(
    *parts: bytes, ends: bool = True
) -> tuple[Callable[[], Awaitable[Message]], list[int]]:
    """A receive that hands out the parts, and the sizes of those that were read."""
    read: list[int] = []
    left = list(parts)

    async def receive() -> Message:
        if not left:
            return {"type": "http.disconnect"}
        read.append(len(left[0]))
        more = len(left) > 1 or not ends
        return {"type": "http.request", "body": left.pop(0), "more_body": more}

    return receive, read


async def test_a_body_is_refused_by_what_it_announces_before_a_byte_of_it_is_read() -> None:
    budget = HostBudget(32 * MIB)  # bodies: 6 MiB
    receive, read = arriving(b"a")
    with budget.hold(Use.BODIES) as first, budget.hold(Use.BODIES) as second:
        first.hold(4 * MIB)
        with pytest.raises(QuireError) as refused:
            await Body().read(scope(4 * MIB), receive, second)
    assert refused.value.code is ErrorCode.MEMORY_BUDGET
    assert not read


async def test_a_chunked_body_is_refused_as_soon_as_there_is_no_room() -> None:
    budget = HostBudget(32 * MIB)
    receive, read = arriving(*[bytes(MIB)] * 9)
    with budget.hold(Use.BODIES) as holding, pytest.raises(QuireError):
        await Body().read(scope(None), receive, holding)
    assert len(read) == 6  # with the buffer's growth, six of 1 MiB are more than 6 MiB


@pytest.mark.parametrize("size", [10, 5 * MIB])
async def test_a_body_that_ends_too_soon_gives_all_back(size: int) -> None:
    budget = HostBudget(128 * MIB)
    receive, _ = arriving(b"abc", ends=False)
    with pytest.raises(ClientDisconnected), budget.hold(Use.BODIES) as holding:
        await Body().read(scope(size), receive, holding)
    assert not any(budget.used.values())


def test_past_the_budget_a_request_is_refused_with_when_to_come_again() -> None:
    state = make_state()
    with state.budget.hold(Use.BODIES) as others:
        others.hold(int(state.budget.held_bytes * 0.75) - 10, Use.REQUESTS)
        response = with_client(state, lambda client: client.post("/v1/completions", json=GOOD))
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert response.json()["error"]["code"] == "memory_budget_exceeded"
    (record,) = state.metrics.records
    assert record.outcome is Outcome.OVERLOADED
    assert is_empty(state)


@pytest.mark.parametrize(
    "body",
    [
        json.dumps(GOOD),
        json.dumps({**GOOD, "stream": True}),
        json.dumps({**GOOD, "prompt": "a" * 100_000}),
        json.dumps({**GOOD, "prompt": ["a" * 30_000, [1] * 5000]}),
        json.dumps({**GOOD, "nonsense": "a" * 100_000}),
        "a" * 100_000,
        "[" * 100_000,
        json.dumps({**GOOD, "prompt": "\ud800" + "a" * 100_000}),
        json.dumps({**GOOD, "prompt": "a" * 400_000}),
    ],
    ids=["small", "stream", "large", "several", "unknown", "no JSON", "deep", "bad", "too long"],
)
@pytest.mark.parametrize("failure", [None, QuireError(ErrorCode.QUEUE_FULL, "full"), ValueError()])
def test_everything_comes_back_however_a_request_ends(body: str, failure: Any) -> None:
    state = make_state(FakeEngine(failure=failure), model=CARD)
    sent = {"content": body, "headers": HEADERS}
    response = with_client(state, lambda client: client.post("/v1/completions", **sent))
    assert response.status_code in (200, 400, 429, 500)
    assert is_empty(state)
    assert state.budget.peak_bytes > len(body)


@pytest.mark.parametrize("prompt", ["a", "a" * 200_000])
def test_everything_comes_back_from_a_client_that_leaves(prompt: str) -> None:
    """At every turn of the loop: while it is parsed, tokenised, queued, answered."""

    async def story(turns: int) -> bool:
        state = make_state(FakeEngine(token_delay=0.001), model=CARD)
        app = create_app(state)
        leave = asyncio.Event()
        messages = [{"type": "http.request", "body": json.dumps({"prompt": prompt}).encode()}]

        async def receive() -> Message:
            if messages:
                return messages.pop()
            await leave.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            pass

        path = {"path": "/v1/completions", "raw_path": b"/v1/completions", "query_string": b""}
        asked = {"type": "http", "method": "POST", "headers": [], "app": app, **path}
        task = asyncio.create_task(app(asked, receive, send))
        for _ in range(turns):
            await asyncio.sleep(0)
        leave.set()
        await task
        while not is_empty(state):  # a thread may still be at it
            await asyncio.sleep(0.001)
        return bool(state.metrics.records[0].outcome is Outcome.ABORT)

    assert all(asyncio.run(story(turns)) for turns in range(0, 30, 3))


def test_while_an_answer_is_made_only_the_ids_are_held() -> None:
    """Not the body, nor its text: a long stream would keep them for minutes."""
    length = 250_000
    body = json.dumps({**GOOD, "prompt": "a" * length}).encode()
    counted: list[int] = []

    def only_ids() -> bool:
        """The ids themselves are small, and Python's own: their slots alone are traced."""
        return tracemalloc.get_traced_memory()[0] < 8 * length + length // 2

    class Looks(FakeEngine):
        async def submit(self, requests: Any) -> None:
            counted.append(sum(state.budget.used.values()))
            while tracemalloc.is_tracing() and not only_ids():  # a thread lets go a little later
                await asyncio.sleep(0)
            await super().submit(requests)

    state = make_state(Looks(), model=CARD)

    async def story(client: httpx.AsyncClient) -> int:
        sent = await client.post("/v1/completions", content=body, headers=HEADERS)
        tracemalloc.start()
        try:
            async with asyncio.timeout(30):
                await client.post("/v1/completions", content=body, headers=HEADERS)
        finally:
            tracemalloc.stop()
        return sent.status_code

    assert with_client(state, story) == 200
    assert 40 * length <= counted[1] < 40 * length + 10_000


@pytest.mark.parametrize("name", BODIES)
def test_what_parsing_takes_is_what_was_counted_at_the_most(name: str) -> None:
    """The figures of server.api.sizes are bounds, and no more than a few times what is measured."""
    body = BODIES[name](300_000)
    if name in ("nested", "quotes", "backslashes"):  # refused, or no JSON
        return
    shape = measure(body, JsonLimits(values=10**6, containers=10**6))
    tracemalloc.start()
    try:
        parsed = parse_object(body)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    bound = parsing_bytes(body, shape)
    assert peak <= bound + 10_000
    assert bound <= 12 * peak
    assert held_bytes(parsed) <= bound


@pytest.mark.parametrize("size", [20_000, 400_000])
@pytest.mark.parametrize("piece", [b'""', b'"]]', b'"a":{},', b'"a",', b"1,", b"]"])
def test_what_counting_takes_is_what_was_said_at_the_most(piece: bytes, size: int) -> None:
    """Whatever lies between quotes, and there may be as many as a completion's ids allow."""
    body = piece * (size // len(piece))
    limits = JsonLimits(values=10**6, containers=10**6)
    tracemalloc.start()
    try:
        measure(body, limits)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= counting_bytes(body)


def test_the_size_of_a_value_is_that_of_its_objects() -> None:
    value = {"a" * 100: ["b" * 1000, {"c": 1.5}], "ids": tuple(range(1000, 2000))}
    parts = sys.getsizeof("a" * 100) + sys.getsizeof("b" * 1000) + sys.getsizeof(1.5)
    assert held_bytes(value) > parts + 40 * 1000
