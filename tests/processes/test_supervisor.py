"""The engine process lives and dies; its requests, its successor and its parent hear of it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from server.engine.events import Event
from server.engine.request import EngineLimits, EngineRequest, SamplingParams
from server.engine_facts import EngineFacts, EngineSettings
from server.errors import ErrorCode, QuireError, StartupError
from server.ipc.client import IpcEngineClient
from server.ipc.gauges import GaugeBlock
from server.ipc.process import EngineProcess, spawn_engine
from server.ipc.supervisor import EngineState, RestartPolicy, Supervisor
from server.memory.layout import RunnerConfig
from server.metrics.stats import NullMetrics

ROOT = str(Path(__file__).parents[2])
FAKE = (sys.executable, "-m", "tests.processes.fake_engine")
SETTINGS = EngineSettings(
    model_dir="/models/none",
    runner=RunnerConfig("f32", 16, 8, 4, 64, 128, 8, 5),
    limits=EngineLimits(4, 64, 128, 8, 16, 1024, 1.0),
    num_threads=1,
)
FAST = RestartPolicy(max_restarts=3, window_s=60, first_pause_s=0.01, stall_s=60, check_s=0.02)


class CountingMetrics(NullMetrics):
    def __init__(self) -> None:
        self.restarts = 0

    def observe_engine_restart(self) -> None:
        self.restarts += 1


class Engine:
    """A supervised fake engine; ``behaviours`` are its processes', the last for all later."""

    def __init__(self, behaviours: list[str], policy: RestartPolicy) -> None:
        self.metrics = CountingMetrics()
        self.client = IpcEngineClient(self.metrics)
        self.gauges = GaugeBlock.create(("heartbeat",))
        self.facts: list[EngineFacts] = []
        self._behaviours = behaviours
        self.supervisor = Supervisor(
            self.spawn,
            SETTINGS,
            self.client,
            self.metrics,
            heartbeat=lambda: self.gauges.read()["heartbeat"],
            on_ready=self.facts.append,
            policy=policy,
        )

    def spawn(self) -> EngineProcess:
        now = self._behaviours[0]
        if len(self._behaviours) > 1:
            self._behaviours.pop(0)
        return spawn_engine((*FAKE, now), self.gauges.fd)

    async def until(self, condition: Callable[[], bool], seconds: float = 10) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "it did not happen in time"
            await asyncio.sleep(0.005)

    async def until_ready(self) -> None:
        await self.until(lambda: self.supervisor.state is EngineState.READY)


@asynccontextmanager
async def engine(*behaviours: str, policy: RestartPolicy = FAST) -> AsyncIterator[Engine]:
    it = Engine(list(behaviours), policy)
    running = asyncio.create_task(it.supervisor.run(it.spawn()))
    try:
        await it.until_ready()
        yield it
    finally:
        it.supervisor.stop()
        await running
        it.gauges.close()


def request(request_id: str, max_tokens: int = 5, prompt: int = 1) -> EngineRequest:
    return EngineRequest(request_id, (prompt,), SamplingParams(seed=0, max_tokens=max_tokens))


async def tokens(client: IpcEngineClient, request_id: str) -> list[int]:
    found: list[int] = []
    async for event in client.events(request_id):
        found += token_ids(event)
    return found


def token_ids(event: Event) -> tuple[int, ...]:
    return getattr(event, "token_ids", ())


def test_a_request_goes_over_and_its_tokens_come_back() -> None:
    async def story() -> None:
        async with engine("serves") as it:
            await it.client.submit([request("a"), request("b", max_tokens=3)])
            both = await asyncio.gather(tokens(it.client, "a"), tokens(it.client, "b"))
            assert both == [[1, 2, 3, 4, 5], [1, 2, 3]]
            assert it.client.num_open == 0
            assert it.facts[0].weights == {"embedding": 1}

    asyncio.run(story())


def test_a_refusal_arrives_with_its_code_and_retry_after() -> None:
    async def story() -> None:
        async with engine("serves") as it:
            with pytest.raises(QuireError, match="the queue is full") as raised:
                await it.client.submit([request("a", prompt=666)])
            assert raised.value.code is ErrorCode.QUEUE_FULL
            assert raised.value.retry_after == 7
            assert it.client.num_open == 0

    asyncio.run(story())


def test_abort_and_finish_end_a_stream_without_another_event() -> None:
    async def story() -> None:
        async with engine("serves") as it:
            await it.client.submit([request("a", 10_000), request("b", 10_000)])
            seen: list[int] = []
            async for event in it.client.events("a"):
                seen += token_ids(event)
                if len(seen) == 2:
                    it.client.finish("a", 0)
            assert seen[:2] == [1, 2]
            it.client.abort(["b", "unknown"])
            it.client.abort(["b"])
            await it.client.submit([request("c", 2)])
            assert await tokens(it.client, "c") == [1, 2]
            assert it.client.num_open == 0

    asyncio.run(story())


def test_kill_9_of_the_engine_fails_every_open_request_at_once_and_starts_another() -> None:
    async def story() -> None:
        async with engine("serves") as it:
            ids = [f"r{i}" for i in range(8)]
            await it.client.submit([request(name, 10_000) for name in ids])
            streams = [asyncio.create_task(tokens(it.client, name)) for name in ids]
            await asyncio.sleep(0.1)
            first = it.supervisor.pid
            assert first is not None
            killed = time.monotonic()
            os.kill(first, signal.SIGKILL)
            results = await asyncio.gather(*streams, return_exceptions=True)
            assert time.monotonic() - killed < FAST.doubt_s
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
        async with engine("serves", policy=RestartPolicy(first_pause_s=30)) as it:
            with pytest.raises(QuireError):
                await it.client.submit([request("a", prompt=667)])  # kills the engine
            assert it.supervisor.state is EngineState.STARTING
            with pytest.raises(QuireError) as raised:
                await it.client.submit([request("b")])
            assert raised.value.code is ErrorCode.ENGINE_UNAVAILABLE
            assert it.client.num_open == 0
            it.supervisor.stop()

    # The pause of 30 s is not waited out: stopping ends it.
    started = time.monotonic()
    asyncio.run(story())
    assert time.monotonic() - started < 10


def test_an_engine_that_makes_no_progress_is_killed_and_replaced() -> None:
    async def story() -> None:
        policy = RestartPolicy(first_pause_s=0.01, stall_s=0.6, doubt_s=0.2, check_s=0.05)
        async with engine("serves", policy=policy) as it:
            await asyncio.sleep(1)  # idle, but alive: no stall
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
        await asyncio.wait_for(running, 20)
        assert it.supervisor.state is EngineState.GAVE_UP
        assert it.metrics.restarts == FAST.max_restarts
        it.gauges.close()

    asyncio.run(story())


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
        with pytest.raises(StartupError, match="tensor x is missing"):
            await it.supervisor.run(it.spawn())
        it.gauges.close()

    asyncio.run(story())


def test_draining_refuses_new_requests_and_finishes_open_ones() -> None:
    async def story() -> None:
        async with engine("serves") as it:
            await it.client.submit([request("a", 10)])
            it.client.drain()
            with pytest.raises(QuireError) as raised:
                await it.client.submit([request("b")])
            assert raised.value.code is ErrorCode.SHUTTING_DOWN
            assert await tokens(it.client, "a") == list(range(1, 11))

    asyncio.run(story())


def test_a_cancelled_submission_leaves_nothing_open() -> None:
    async def story() -> None:
        async with engine("serves") as it:
            submission = asyncio.create_task(it.client.submit([request("a", 10_000)]))
            await asyncio.sleep(0)
            submission.cancel()
            with pytest.raises(asyncio.CancelledError):
                await submission
            assert it.client.num_open == 0

    asyncio.run(story())


PARENT = """
import sys, time
sys.path.insert(0, {root!r})
from server.ipc.gauges import GaugeBlock
from server.ipc.process import spawn_engine
engine = spawn_engine(({fake!r}) + ("serves",), GaugeBlock.create(("heartbeat",)).fd)
print(engine.pid, flush=True)
time.sleep(600)
"""


def test_kill_9_of_the_parent_leaves_no_engine_behind() -> None:
    code = PARENT.format(root=ROOT, fake=FAKE)
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    time.sleep(1.0)  # the engine has tied itself to its parent by now
    assert is_running(pid)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 5
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_running(pid)


CHILD = """
import ctypes, os, sys
from server.ipc.process import die_with_parent
die_with_parent(os.getppid(), os.pipe()[0])
number = ctypes.c_int()
ctypes.CDLL(None).prctl(2, ctypes.byref(number), 0, 0, 0)  # PR_GET_PDEATHSIG
print(number.value)
"""


def test_the_kernel_kills_an_engine_that_is_too_busy_to_see_its_parent_die() -> None:
    result = subprocess.run(
        [sys.executable, "-c", CHILD], capture_output=True, text=True, cwd=ROOT, timeout=30
    )
    assert result.stdout.strip() == str(int(signal.SIGKILL)), result.stderr


def is_running(pid: int) -> bool:
    """False for a process that is gone, or dead and not yet reaped by its new parent."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def test_only_the_main_thread_may_spawn() -> None:
    async def story() -> None:
        it = Engine(["serves"], FAST)
        with pytest.raises(RuntimeError, match="main thread"):
            await asyncio.to_thread(it.spawn)
        it.gauges.close()

    asyncio.run(story())


def test_a_question_about_memory_is_answered_between_steps() -> None:
    async def story() -> None:
        async with engine("serves") as it:
            await it.client.submit([request("a", 10_000)])
            first, second = await asyncio.gather(
                it.client.memory_of(["a", "nobody"]), it.client.memory_of(["nobody"])
            )
            assert [one.request_id for one in first] == ["a"]
            assert (first[0].blocks, first[0].share, first[0].block_seconds) == (2, 1.5, 4.5)
            assert second == ()

    asyncio.run(story())


def test_a_question_to_an_engine_that_dies_or_is_not_there_is_an_error() -> None:
    async def story() -> None:
        async with engine("serves") as it:
            await it.client.submit([request("a", 10_000)])
            asking = asyncio.create_task(it.client.memory_of(["a"]))
            await asyncio.sleep(0)
            it.client.detach(QuireError(ErrorCode.ENGINE_UNAVAILABLE, "The engine stopped."))
            with pytest.raises(QuireError, match="stopped"):
                await asking
            with pytest.raises(QuireError, match="not ready"):
                await it.client.memory_of(["a"])

    asyncio.run(story())
