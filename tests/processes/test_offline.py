"""The engine in this process behaves as the one across the boundary does."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any, cast

import pytest

from server.client.in_process import OfflineEngineClient
from server.engine.core import EngineCore
from server.engine.events import EngineFrame
from server.engine.request import Task
from server.errors import ErrorCode, QuireError
from tests.engine.engine_story import Story
from tests.processes.fake_engine import ForgetfulCore
from tests.processes.supervised_engine import request, tokens


class FailingCore(ForgetfulCore):
    """Fails in its third step."""

    def step(self) -> EngineFrame | None:
        frame = super().step()
        if frame is not None and any(output.token_ids == (3,) for output in frame.choices):
            raise RuntimeError("the model broke")
        return frame


def client(core: Any = None) -> OfflineEngineClient:
    return OfflineEngineClient(cast(EngineCore, core or ForgetfulCore(0.001)))


async def test_requests_are_answered_side_by_side() -> None:
    async with client() as engine:
        await engine.submit([request("a"), request("b", 3)])
        both = await asyncio.gather(tokens(engine, "a"), tokens(engine, "b"))
        assert both == [[1, 2, 3, 4, 5], [1, 2, 3]]
        assert engine.num_open == 0


async def test_a_refusal_is_the_clients_error() -> None:
    async with client() as engine:
        with pytest.raises(QuireError) as raised:
            await engine.submit([request("a", prompt=666)])
        assert raised.value.code is ErrorCode.QUEUE_FULL


async def test_a_task_that_the_model_does_not_support_is_a_bad_request() -> None:
    async with client(Story().core) as engine:
        with pytest.raises(QuireError, match="does not support the task embed") as raised:
            await engine.submit([replace(request("a"), task=Task.EMBED)])
        assert raised.value.code.value.status == 400


async def test_abort_and_finish_end_streams() -> None:
    async with client() as engine:
        await engine.submit([request("a", 10**6), request("b", 10**6)])
        engine.abort(["a", "unknown"])
        engine.finish("b", 0, 0)
        assert len(await tokens(engine, "b")) < 10**6
        assert engine.num_open == 0
        with pytest.raises(QuireError):
            await tokens(engine, "a")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_an_engine_that_fails_ends_its_requests_with_an_error() -> None:
    async with client(FailingCore(0.001)) as engine:
        await engine.submit([request("a", 10)])
        with pytest.raises(QuireError, match="the model broke"):
            await tokens(engine, "a")
        with pytest.raises(QuireError, match="the model broke"):
            await engine.submit([request("b")])


async def test_a_call_runs_between_two_steps() -> None:
    core = ForgetfulCore(0.001)
    async with client(core) as engine:
        seen: list[int] = []
        await engine.call(lambda: seen.append(core.steps))
        assert seen
