"""A fake engine in a process of its own, its supervisor, and the client that speaks with it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from server.client.in_process import OfflineEngineClient
from server.client.ipc import IpcEngineClient
from server.client.process import EngineProcess, spawn_engine
from server.client.supervisor import EngineState, RestartPolicy, Supervisor
from server.engine.events import Event
from server.engine.request import EngineRequest, SamplingParams
from server.ipc.engine_info import EngineInfo, EngineSettings
from server.ipc.gauges import GaugeBlock
from server.metrics.stats import NullMetrics
from tests.engine_configs import engine_config

ROOT = str(Path(__file__).parents[2])
FAKE = (sys.executable, "-m", "tests.processes.fake_engine")
SETTINGS = EngineSettings(
    model_dir="/models/none",
    config=engine_config(max_num_seqs=4, max_model_len=128),
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

    def __init__(
        self,
        behaviours: list[str],
        policy: RestartPolicy,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.metrics = CountingMetrics()
        self.client = IpcEngineClient(self.metrics)
        self.gauges = GaugeBlock.create(("heartbeat",))
        self.facts: list[EngineInfo] = []
        self._behaviours = behaviours
        self.supervisor = Supervisor(
            self.spawn,
            SETTINGS,
            self.client,
            self.metrics,
            heartbeat=lambda: self.heartbeat,
            on_ready=self.facts.append,
            policy=policy,
            clock=clock,
        )

    def spawn(self) -> EngineProcess:
        now = self._behaviours[0]
        if len(self._behaviours) > 1:
            self._behaviours.pop(0)
        return spawn_engine((*FAKE, now), self.gauges.fd)

    @property
    def heartbeat(self) -> int:
        return self.gauges.read()["heartbeat"]

    def kill(self) -> int:
        """Its process now, which is gone after this."""
        pid = self.supervisor.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        return pid

    async def until(self, condition: Callable[[], bool]) -> None:
        """The minute ends a test that hangs; it is no measure."""
        async with asyncio.timeout(60):
            while not condition():
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


async def tokens(client: IpcEngineClient | OfflineEngineClient, request_id: str) -> list[int]:
    return [token async for event in client.events(request_id) for token in token_ids(event)]


def token_ids(event: Event) -> tuple[int, ...]:
    return getattr(event, "token_ids", ())
