"""Requests and questions to an engine process, and what comes back."""

from __future__ import annotations

import asyncio

import pytest

from server.errors import ErrorCode, QuireError
from tests.processes.supervised_engine import engine, request, token_ids, tokens


async def test_a_request_goes_over_and_its_tokens_come_back() -> None:
    async with engine("serves") as it:
        await it.client.submit([request("a"), request("b", max_tokens=3)])
        both = await asyncio.gather(tokens(it.client, "a"), tokens(it.client, "b"))
        assert both == [[1, 2, 3, 4, 5], [1, 2, 3]]
        assert it.client.num_open == 0
        assert it.facts[0].weights == {"embedding": 1}


async def test_a_refusal_arrives_with_its_code_and_retry_after() -> None:
    async with engine("serves") as it:
        with pytest.raises(QuireError, match="the queue is full") as raised:
            await it.client.submit([request("a", prompt=666)])
        assert raised.value.code is ErrorCode.QUEUE_FULL
        assert raised.value.retry_after == 7
        assert it.client.num_open == 0


async def test_abort_and_finish_end_a_stream_without_another_event() -> None:
    async with engine("serves") as it:
        await it.client.submit([request("a", 10_000), request("b", 10_000)])
        seen: list[int] = []
        async for event in it.client.events("a"):
            seen += token_ids(event)
            if len(seen) == 2:
                it.client.finish("a", 0, 2)
        assert seen[:2] == [1, 2]
        it.client.abort(["b", "unknown"])
        it.client.abort(["b"])
        await it.client.submit([request("c", 2)])
        assert await tokens(it.client, "c") == [1, 2]
        assert it.client.num_open == 0


async def test_draining_refuses_new_requests_and_finishes_open_ones() -> None:
    async with engine("serves") as it:
        await it.client.submit([request("a", 10)])
        it.client.drain()
        with pytest.raises(QuireError) as raised:
            await it.client.submit([request("b")])
        assert raised.value.code is ErrorCode.SHUTTING_DOWN
        assert await tokens(it.client, "a") == list(range(1, 11))


async def test_a_cancelled_submission_leaves_nothing_open() -> None:
    async with engine("serves") as it:
        submission = asyncio.create_task(it.client.submit([request("a", 10_000)]))
        await asyncio.sleep(0)
        submission.cancel()
        with pytest.raises(asyncio.CancelledError):
            await submission
        assert it.client.num_open == 0


async def test_a_question_about_memory_is_answered_between_steps() -> None:
    async with engine("serves") as it:
        await it.client.submit([request("a", 10_000)])
        first, second = await asyncio.gather(
            it.client.memory_of(["a", "nobody"]), it.client.memory_of(["nobody"])
        )
        assert [one.request_id for one in first] == ["a"]
        assert (first[0].blocks, first[0].share, first[0].block_seconds) == (2, 1.5, 4.5)
        assert second == ()


async def test_a_question_to_an_engine_that_dies_or_is_not_there_is_an_error() -> None:
    async with engine("serves") as it:
        await it.client.submit([request("a", 10_000)])
        asking = asyncio.create_task(it.client.memory_of(["a"]))
        await asyncio.sleep(0)
        it.client.detach(QuireError(ErrorCode.ENGINE_UNAVAILABLE, "The engine stopped."))
        with pytest.raises(QuireError, match="stopped"):
            await asking
        with pytest.raises(QuireError, match="not ready"):
            await it.client.memory_of(["a"])
