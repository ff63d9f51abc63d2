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


def test_kill_9_of_the_engine_fails_every_open_request_at_once_and_starts_another() -> None:
    """Nobody waits for its silence to be noticed: that would take an hour here."""

    async def story() -> None:
        async with engine("serves", policy=replace(FAST, stall_s=3600)) as it:
            ids = [f"r{i}" for i in range(8)]
            await it.client.submit([request(name, 10_000) for name in ids])
            streams = [asyncio.create_task(tokens(it.client, name)) for name in ids]
            await asyncio.sleep(0.1)
            first = it.supervisor.pid
            assert first is not None
            os.kill(first, signal.SIGKILL)
            results = await asyncio.gather(*streams, return_exceptions=True)
            for result in results:
                assert isinstance(result, QuireError)
                assert result.code is ErrorCode.ENGINE_UNAVAILABLE
            await it.until(lambda: it.supervisor.pid not in (None, first))
            await it.until_ready()
            await it.client.submit([request("again", 3)])
            assert await tokens(it.client, "again") == [1, 2, 3]
            assert it.metrics.restarts == 1

    asyncio.run(story())


def test_without_a_ready_engine_submissions_are_refused_and_not_kept() -> None:
    async def story() -> None:
        async with engine("serves", policy=RestartPolicy(first_pause_s=3600)) as it:
            with pytest.raises(QuireError):
                await it.client.submit([request("a", prompt=667)])  # kills the engine
            assert it.supervisor.state is EngineState.STARTING
            with pytest.raises(QuireError) as raised:
                await it.client.submit([request("b")])
            assert raised.value.code is ErrorCode.ENGINE_UNAVAILABLE
            assert it.client.num_open == 0
            it.supervisor.stop()

    asyncio.run(story())  # stopping ends the pause of an hour


def test_an_engine_that_makes_no_progress_is_killed_and_replaced() -> None:
    async def story() -> None:
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

    asyncio.run(story())


def test_an_engine_that_dies_while_it_is_in_doubt_leaves_no_doubt_about_its_successor() -> None:
    async def story() -> None:
        policy = RestartPolicy(first_pause_s=30, stall_s=60, doubt_s=0.1, check_s=0.02)
        async with engine("serves", policy=policy) as it:
            submission = asyncio.create_task(it.client.submit([request("a", prompt=668)]))
            await it.until(lambda: it.supervisor.stalls)
            assert it.supervisor.pid is not None
            os.kill(it.supervisor.pid, signal.SIGKILL)
            with pytest.raises(QuireError):
                await submission
            assert not it.supervisor.stalls

    asyncio.run(story())


def test_a_stopped_engine_does_not_serve_and_does_again_when_it_goes_on() -> None:
    async def story() -> None:
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

    asyncio.run(story())


def test_a_stopped_engine_ends_its_streams_in_an_error() -> None:
    async def story() -> None:
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

    asyncio.run(story())


def test_a_first_engine_that_stops_while_it_loads_is_a_start_up_error() -> None:
    async def story() -> None:
        it = Engine(["hangs"], RestartPolicy(loading_s=0.3, check_s=0.02))
        with pytest.raises(StartupError, match="read no bytes and computed nothing for 0 s"):
            await it.supervisor.run(it.spawn())
        it.gauges.close()

    asyncio.run(story())


def test_a_later_engine_that_stops_while_it_loads_is_a_death_that_counts() -> None:
    async def story() -> None:
        it = Engine(["serves", "hangs"], RestartPolicy(loading_s=0.3, check_s=0.02, max_restarts=1,
                                                      first_pause_s=0.01))  # fmt: skip
        running = asyncio.create_task(it.supervisor.run(it.spawn()))
        await it.until_ready()
        assert it.supervisor.pid is not None
        os.kill(it.supervisor.pid, signal.SIGKILL)
        await running
        assert it.supervisor.state is EngineState.GAVE_UP
        assert it.metrics.restarts == 1
        it.gauges.close()

    asyncio.run(story())


def test_an_engine_that_sends_rubbish_is_replaced() -> None:
    async def story() -> None:
        async with engine("babbles", "serves") as it:
            await it.until(lambda: it.metrics.restarts == 1)
            await it.until_ready()
            await it.client.submit([request("a", 1)])
            assert await tokens(it.client, "a") == [1]

    asyncio.run(story())


def test_after_too_many_deaths_the_supervisor_gives_up() -> None:
    async def story() -> None:
        it = Engine(["serves", "dies"], FAST)
        running = asyncio.create_task(it.supervisor.run(it.spawn()))
        await it.until_ready()
        assert it.supervisor.pid is not None
        os.kill(it.supervisor.pid, signal.SIGKILL)
        await running
        assert it.supervisor.state is EngineState.GAVE_UP
        assert it.metrics.restarts == FAST.max_restarts
        it.gauges.close()

    asyncio.run(story())


def test_a_death_counts_for_as_long_as_the_window_is() -> None:
    """Two deaths in 100 s are too many, and one a little more than 100 s after another is not."""

    async def story(moments: list[float]) -> EngineState:
        times = iter(moments)
        it = Engine(
            ["dies"],
            RestartPolicy(max_restarts=1, window_s=100, first_pause_s=0),
            clock=lambda: next(times),
        )
        for _ in moments:
            process = await it.supervisor._after_death("a test")
            if process is not None:
                process.close()
        it.gauges.close()
        return it.supervisor.state

    assert asyncio.run(story([0, 100])) is EngineState.GAVE_UP
    assert asyncio.run(story([0, 100.5, 201, 301.5])) is EngineState.STARTING
    assert asyncio.run(story([0, 100.5, 150])) is EngineState.GAVE_UP


def test_the_pause_before_a_successor_doubles_with_each_death(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def story() -> None:
        policy = RestartPolicy(max_restarts=3, window_s=100, first_pause_s=0.01)
        times = iter([0.0, 1.0, 2.0])
        it = Engine(["dies"], policy, clock=lambda: next(times))
        for _ in range(3):
            process = await it.supervisor._after_death("a test")
            assert process is not None
            process.close()
        it.gauges.close()

    asyncio.run(story())
    said = [record for record in caplog.records if "starting it again" in record.msg]
    assert [record.args for record in said] == [("a test", pause) for pause in (0.01, 0.02, 0.04)]


def test_a_first_engine_that_dies_while_it_starts_is_a_start_up_error() -> None:
    async def story() -> None:
        it = Engine(["dies"], FAST)
        with pytest.raises(StartupError, match="exit code 5"):
            await it.supervisor.run(it.spawn())
        assert it.metrics.restarts == 0
        it.gauges.close()

    asyncio.run(story())


def test_a_first_engine_that_cannot_be_built_is_a_start_up_error() -> None:
    async def story() -> None:
        it = Engine(["refuses"], FAST)
        with pytest.raises(StartupError, match=r"^model\.safetensors: tensor x is missing$"):
            await it.supervisor.run(it.spawn())
        it.gauges.close()

    asyncio.run(story())


def test_a_later_engine_that_cannot_be_built_is_a_death_that_counts() -> None:
    """The checkpoint was there once: it may be again, as after a file system came back."""

    async def story() -> None:
        it = Engine(["serves", "refuses", "serves"], FAST)
        running = asyncio.create_task(it.supervisor.run(it.spawn()))
        await it.until_ready()
        first = it.supervisor.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await it.until(lambda: it.metrics.restarts == 2)
        await it.until_ready()
        it.supervisor.stop()
        await running
        it.gauges.close()

    asyncio.run(story())
