"""The engine process dies, or makes no progress: its requests and its successor hear of it."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import replace

import pytest

from server.client.supervisor import EngineState, Health, RestartPolicy
from server.errors import ErrorCode, QuireError, StartupError
from tests.processes.supervised_engine import FAST, Engine, engine, request, tokens


async def test_kill_9_of_the_engine_fails_every_open_request_at_once_and_starts_another() -> None:
    """Nobody waits for its silence to be noticed: that would take an hour here."""
    async with engine("serves", policy=replace(FAST, stall_s=3600)) as it:
        ids = [f"r{i}" for i in range(8)]
        await it.client.submit([request(name, 10_000) for name in ids])
        streams = [asyncio.create_task(tokens(it.client, name)) for name in ids]
        await asyncio.sleep(0.1)
        first = it.kill()
        results = await asyncio.gather(*streams, return_exceptions=True)
        for result in results:
            assert isinstance(result, QuireError)
            assert result.code is ErrorCode.ENGINE_UNAVAILABLE
        await it.until(lambda: it.supervisor.pid not in (None, first))
        await it.until_ready()
        await it.client.submit([request("again", 3)])
        assert await tokens(it.client, "again") == [1, 2, 3]
        assert it.metrics.restarts == 1


async def test_without_a_ready_engine_submissions_are_refused_and_not_kept() -> None:
    async with engine("serves", policy=RestartPolicy(first_pause_s=3600)) as it:
        with pytest.raises(QuireError):
            await it.client.submit([request("a", prompt=667)])  # kills the engine
        assert it.supervisor.state is EngineState.STARTING
        with pytest.raises(QuireError) as raised:
            await it.client.submit([request("b")])
        assert raised.value.code is ErrorCode.ENGINE_UNAVAILABLE
        assert it.client.num_open == 0
        it.supervisor.stop()


async def test_an_engine_that_makes_no_progress_is_killed_and_replaced() -> None:
    policy = RestartPolicy(first_pause_s=0.01, stall_s=0.6, doubt_s=0.2, check_s=0.05)
    async with engine("serves", policy=policy) as it:
        heartbeat = it.heartbeat
        await it.until(lambda: it.heartbeat > heartbeat + 20)  # idle, but alive: no stall
        assert it.metrics.restarts == 0
        submission = asyncio.create_task(it.client.submit([request("a", prompt=668)]))
        await it.until(lambda: it.supervisor.stalls)
        with pytest.raises(QuireError):
            await submission
        await it.until_ready()
        assert it.metrics.restarts == 1
        assert not it.supervisor.stalls


async def test_an_engine_that_dies_while_it_is_in_doubt_leaves_no_doubt_about_its_successor():
    policy = RestartPolicy(first_pause_s=30, stall_s=60, doubt_s=0.1, check_s=0.02)
    async with engine("serves", policy=policy) as it:
        submission = asyncio.create_task(it.client.submit([request("a", prompt=668)]))
        await it.until(lambda: it.supervisor.stalls)
        it.kill()
        with pytest.raises(QuireError):
            await submission
        assert not it.supervisor.stalls


async def test_a_stopped_engine_does_not_serve_and_does_again_when_it_goes_on() -> None:
    policy = RestartPolicy(late_s=0.2, check_s=0.02)
    async with engine("serves", policy=policy) as it:
        health = Health(it.supervisor)
        pid = it.supervisor.pid
        assert pid is not None
        assert health.ready
        os.kill(pid, signal.SIGSTOP)
        await it.until(lambda: not health.ready)
        assert health.alive, "it may go on: only much later is it given up"
        os.kill(pid, signal.SIGCONT)
        await it.until(lambda: health.ready)
        assert (it.supervisor.pid, it.metrics.restarts) == (pid, 0)


async def test_a_stopped_engine_ends_its_streams_in_an_error() -> None:
    policy = RestartPolicy(stall_s=0.4, check_s=0.02, first_pause_s=30)
    async with engine("serves", policy=policy) as it:
        await it.client.submit([request("a", 10_000)])
        stream = asyncio.create_task(tokens(it.client, "a"))
        assert it.supervisor.pid is not None
        os.kill(it.supervisor.pid, signal.SIGSTOP)
        with pytest.raises(QuireError) as raised:
            await stream
        assert raised.value.code is ErrorCode.ENGINE_UNAVAILABLE
        it.supervisor.stop()


HALTED = RestartPolicy(loading_s=0.3, check_s=0.02, max_restarts=1, first_pause_s=0.01)


@pytest.mark.parametrize(
    ("behaviour", "policy", "words"),
    [
        ("hangs", HALTED, "read no bytes and computed nothing for 0 s"),
        ("dies", FAST, "exit code 5"),
        ("refuses", FAST, r"^model\.safetensors: tensor x is missing$"),
    ],
    ids=["stops while it loads", "dies while it starts", "cannot be built"],
)
async def test_a_first_engine_that_does_not_get_ready_is_a_start_up_error(
    behaviour: str, policy: RestartPolicy, words: str
) -> None:
    it = Engine([behaviour], policy)
    with pytest.raises(StartupError, match=words):
        await it.supervisor.run(it.spawn())
    assert it.metrics.restarts == 0
    it.gauges.close()


@pytest.mark.parametrize(("behaviour", "policy"), [("hangs", HALTED), ("dies", FAST)])
async def test_a_later_engine_that_does_not_get_ready_dies_and_after_too_many_it_is_given_up(
    behaviour: str, policy: RestartPolicy
) -> None:
    it = Engine(["serves", behaviour], policy)
    running = asyncio.create_task(it.supervisor.run(it.spawn()))
    await it.until_ready()
    it.kill()
    await running
    assert it.supervisor.state is EngineState.GAVE_UP
    assert it.metrics.restarts == policy.max_restarts
    it.gauges.close()


async def test_an_engine_that_sends_rubbish_is_replaced() -> None:
    async with engine("babbles", "serves") as it:
        await it.until(lambda: it.metrics.restarts == 1)
        await it.until_ready()
        await it.client.submit([request("a", 1)])
        assert await tokens(it.client, "a") == [1]


@pytest.mark.parametrize(
    ("moments", "state"),
    [
        ([0, 100], EngineState.GAVE_UP),
        ([0, 100.5, 201, 301.5], EngineState.STARTING),
        ([0, 100.5, 150], EngineState.GAVE_UP),
    ],
)
async def test_a_death_counts_for_as_long_as_the_window_is(
    moments: list[float], state: EngineState
) -> None:
    """Two deaths in 100 s are too many, and one a little more than 100 s after another is not."""
    policy = RestartPolicy(max_restarts=1, window_s=100, first_pause_s=0)
    times = iter(moments)
    it = Engine(["dies"], policy, clock=lambda: next(times))
    for _ in moments:
        process = await it.supervisor._after_death("a test")
        if process is not None:
            process.close()
    it.gauges.close()
    assert it.supervisor.state is state


async def test_the_pause_before_a_successor_doubles_with_each_death(
    caplog: pytest.LogCaptureFixture,
) -> None:
    policy = RestartPolicy(max_restarts=3, window_s=100, first_pause_s=0.01)
    times = iter([0.0, 1.0, 2.0])
    it = Engine(["dies"], policy, clock=lambda: next(times))
    for _ in range(3):
        process = await it.supervisor._after_death("a test")
        assert process is not None
        process.close()
    it.gauges.close()
    said = [record for record in caplog.records if "starting it again" in record.msg]
    assert [record.args for record in said] == [("a test", pause) for pause in (0.01, 0.02, 0.04)]


async def test_a_later_engine_that_cannot_be_built_is_a_death_that_counts() -> None:
    """The checkpoint was there once: it may be again, as after a file system came back."""
    async with engine("serves", "refuses", "serves") as it:
        it.kill()
        await it.until(lambda: it.metrics.restarts == 2)
        await it.until_ready()
