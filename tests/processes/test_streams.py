"""One frame a step, taken apart: each request gets its own events, and nothing after its end."""

from __future__ import annotations

import asyncio

import pytest

from server.client.streams import RequestStreams, event_bytes, unavailable
from server.engine.events import Accepted, ChoiceOutput, EngineFrame, Event, PromptOutput, Refused
from server.engine.request import EngineError, EngineRequest, FinishReason, SamplingParams
from server.errors import ErrorCode, QuireError
from server.host_budget import HostBudget, Use


def request(request_id: str, n: int = 1) -> EngineRequest:
    return EngineRequest(request_id, (1,), SamplingParams(seed=0), n=n)


def token(request_id: str, choice: int, token_id: int, last: bool = False) -> ChoiceOutput:
    reason = FinishReason.LENGTH if last else None
    return ChoiceOutput(request_id, choice, (token_id,), finish_reason=reason)


def choices(*outputs: ChoiceOutput) -> EngineFrame:
    return EngineFrame(choices=outputs)


async def events(streams: RequestStreams, request_id: str) -> list[Event]:
    return [event async for event in streams.events(request_id)]


async def test_a_stream_ends_with_its_last_choice() -> None:
    streams = RequestStreams()
    streams.open([request("a", n=2), request("b")])
    prompt = PromptOutput("a", 16)
    first = [token("a", 0, 5), token("a", 1, 6, last=True)]
    streams.feed(EngineFrame(prompts=(prompt,), choices=(*first, token("b", 0, 9, last=True))))
    streams.feed(choices(token("a", 0, 7, last=True)))
    assert await events(streams, "b") == [token("b", 0, 9, last=True)]
    assert await events(streams, "a") == [prompt, *first, token("a", 0, 7, last=True)]
    assert streams.num_open == 0


async def test_nothing_is_delivered_of_a_choice_that_has_ended() -> None:
    """A stop string ends a choice here while its next token is on its way."""
    streams = RequestStreams()
    streams.open([request("a", n=2)])
    streams.feed(choices(token("a", 0, 1), token("a", 1, 1)))
    assert streams.end_choice("a", 0)
    assert not streams.end_choice("a", 0)
    streams.feed(choices(token("a", 0, 2), token("a", 1, 2)))
    streams.feed(choices(token("a", 0, 3, last=True), token("a", 1, 3, last=True)))
    found = [(e.choice, e.token_ids) for e in await events(streams, "a") if hasattr(e, "choice")]
    assert found == [(0, (1,)), (1, (1,)), (1, (2,)), (1, (3,))]


async def test_what_crosses_an_end_by_the_clients_will_is_dropped_and_holds_nothing() -> None:
    budget = HostBudget(2**20)
    streams = RequestStreams(budget)
    streams.open([request("stopped"), request("aborted")])
    reader = streams.events("stopped")
    streams.feed(choices(*(token("stopped", 0, step) for step in range(3))))
    await anext(reader)  # completes a stop string; two more have come
    assert streams.end_choice("stopped", 0)
    assert not streams.end_choice("stopped", 0), "the engine is told once"
    await reader.aclose()  # type: ignore[attr-defined]
    streams.drop(["aborted"])
    streams.feed(choices(token("stopped", 0, 3), token("aborted", 0, 3)))
    assert streams.num_open == 0
    assert not budget.used[Use.EVENTS]


async def test_events_of_unknown_requests_are_ignored() -> None:
    streams = RequestStreams()
    refused = Refused(("ghost",), EngineError.QUEUE_FULL, "full")
    outputs = (token("ghost", 0, 1, last=True),)
    streams.feed(EngineFrame((Accepted(("ghost",)),), (refused,), (), outputs))
    assert streams.num_open == 0
    with pytest.raises(QuireError):
        await events(streams, "ghost")


async def test_a_list_is_answered_as_a_whole() -> None:
    streams = RequestStreams()
    yes = streams.open([request("a"), request("b")])
    no = streams.open([request("c"), request("d")])
    refused = Refused(("c", "d"), EngineError.QUEUE_FULL, "full", retry_after=3)
    streams.feed(EngineFrame((Accepted(("a", "b")),), (refused,)))
    await yes
    with pytest.raises(QuireError) as raised:
        await no
    assert (raised.value.code, raised.value.retry_after) == (ErrorCode.QUEUE_FULL, 3)
    assert streams.num_open == 2


async def test_a_lost_engine_ends_every_stream_after_what_had_arrived() -> None:
    streams = RequestStreams()
    streams.open([request("a")])
    waiting = streams.open([request("b")])
    streams.feed(choices(token("a", 0, 1)))
    reader = streams.events("a")
    assert await anext(reader) == token("a", 0, 1)
    streams.fail_all(unavailable("gone"))
    with pytest.raises(QuireError, match="gone"):
        await anext(reader)
    with pytest.raises(QuireError, match="gone"):
        await waiting
    assert streams.num_open == 0


async def test_a_reader_that_leaves_can_still_abort() -> None:
    streams = RequestStreams()
    streams.open([request("a")])
    streams.feed(choices(token("a", 0, 1)))
    reader = streams.events("a")
    await anext(reader)
    await reader.aclose()  # type: ignore[attr-defined]
    assert streams.drop(["a"]) == ["a"]
    assert streams.num_open == 0


async def test_what_is_not_read_is_counted_and_comes_back() -> None:
    budget = HostBudget(2**20)
    streams = RequestStreams(budget)
    streams.open([request(name) for name in "abcd"])
    streams.feed(choices(*(token(name, 0, 1) for name in "abcd")))
    assert budget.used[Use.EVENTS] == sum(event_bytes(token(name, 0, 1)) for name in "abcd")
    reading = streams.events("a")
    assert await anext(reading) == token("a", 0, 1)
    streams.drop(["b"])
    assert budget.used[Use.EVENTS] == 2 * event_bytes(token("c", 0, 1))
    streams.feed(choices(token("c", 0, 2, last=True)))
    await events(streams, "c")
    streams.fail_all(unavailable("gone"))
    assert not budget.used[Use.EVENTS]


async def test_the_client_that_does_not_read_is_given_up_and_the_others_lose_nothing() -> None:
    budget = HostBudget(2**20)
    streams = RequestStreams(budget)
    streams.open([request("slow"), request("good")])
    room = budget.held_bytes // event_bytes(token("slow", 0, 1))
    good = streams.events("good")
    for step in range(room + 3):
        streams.feed(choices(token("slow", 0, step), token("good", 0, step)))
        assert await anext(good) == token("good", 0, step)
        assert budget.used[Use.EVENTS] <= budget.held_bytes
    assert streams.take_given_up() == ["slow"]
    assert not streams.take_given_up()
    assert not budget.used[Use.EVENTS]
    with pytest.raises(QuireError):
        await events(streams, "slow")


async def test_who_waits_on_a_stream_that_is_given_up_hears_why() -> None:
    streams = RequestStreams(HostBudget(100))
    streams.open([request("a")])
    waiting = asyncio.create_task(events(streams, "a"))
    await asyncio.sleep(0)
    streams.feed(choices(token("a", 0, 1)))
    with pytest.raises(QuireError, match="not read") as given_up:
        await waiting
    assert given_up.value.code is ErrorCode.MEMORY_BUDGET
    assert streams.num_open == 0
