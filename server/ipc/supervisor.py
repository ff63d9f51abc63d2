"""Keeps an engine process running: starts it, watches it, starts it again, and knows when to stop.

    STARTING --Ready--> READY --death or stall--> STARTING (after a pause) ... --> GAVE_UP

A death is the socket's end. A stall is a heartbeat that stands still for ``stall_s``: generous,
because one long step makes no heartbeat; the process is then killed, which makes it a death. Every
open request ends in an error at once. After ``max_restarts`` deaths within ``window_s`` the
supervisor gives up and the server exits with code 1, so that whatever started it can decide: a
server that cannot compute must not go on looking like one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import subprocess
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from server.engine_facts import EngineFacts, EngineSettings
from server.errors import StartupError
from server.ipc.client import IpcEngineClient
from server.ipc.frames import (
    LENGTH,
    Decoder,
    Failed,
    FrameError,
    Memory,
    Progress,
    Ready,
    Report,
    Start,
    Step,
    encode,
    message_length,
)
from server.ipc.process import EngineProcess
from server.metrics.stats import StepMetrics
from server.streams import unavailable

_LINGER_S = 1.0

log = logging.getLogger("quire.engine")


class EngineState(StrEnum):
    STARTING = "starting"
    READY = "ready"
    GAVE_UP = "gave_up"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """How often a dead engine is started again. Seconds; the pause doubles with each death."""

    max_restarts: int = 3
    window_s: float = 300.0
    first_pause_s: float = 0.5
    stall_s: float = 120.0  # without a heartbeat: killed
    doubt_s: float = 30.0  # without a heartbeat: no longer called alive
    check_s: float = 0.5


class Supervisor:
    """Owns the engine process for the server's life. Runs in the main thread's event loop."""

    def __init__(
        self,
        spawn: Callable[[], EngineProcess],
        settings: EngineSettings,
        client: IpcEngineClient,
        metrics: StepMetrics,
        *,
        heartbeat: Callable[[], int],
        on_ready: Callable[[EngineFacts], None],
        policy: RestartPolicy | None = None,
    ) -> None:
        self._spawn = spawn
        self._settings = settings
        self._client = client
        self._metrics = metrics
        self._heartbeat = heartbeat
        self._on_ready = on_ready
        self._policy = policy or RestartPolicy()
        self._deaths: deque[float] = deque()
        self._process: EngineProcess | None = None
        self._decoder = Decoder()
        self._was_ready = False
        self._still_s = 0.0
        self._stopped = asyncio.Event()
        self.state = EngineState.STARTING

    @property
    def pid(self) -> int | None:
        """The engine process's id, while there is one."""
        return None if self._process is None else self._process.pid

    @property
    def stalls(self) -> bool:
        """A ready engine has given no heartbeat for longer than a step should take."""
        return self._still_s >= self._policy.doubt_s

    async def run(self, first: EngineProcess) -> None:
        """Attends to ``first`` and its successors; returns when it gave up or was stopped.

        Raises:
            StartupError: the first engine could not be built, or died before it was ready.
        """
        process: EngineProcess | None = first
        while process is not None:
            self._process = process
            try:
                reason = await self._attend(process)
            finally:
                self._process = None
                process.close()
            if self.state is EngineState.STOPPED:
                return
            if not self._was_ready:
                raise StartupError(f"the engine process died while it started: {reason}")
            process = await self._after_death(reason)

    def stop(self) -> None:
        """Ends the engine process; ``run`` returns."""
        self.state = EngineState.STOPPED
        self._stopped.set()
        if self._process is not None:
            self._process.popen.kill()

    async def _after_death(self, reason: str) -> EngineProcess | None:
        """Starts a successor after a pause, unless there were too many."""
        now = time.monotonic()
        self._deaths.append(now)
        while now - self._deaths[0] > self._policy.window_s:
            self._deaths.popleft()
        count = len(self._deaths)
        if count > self._policy.max_restarts:
            log.error(
                "the engine died %d times in %.0f s (last: %s); giving up",
                count,
                self._policy.window_s,
                reason,
            )
            self.state = EngineState.GAVE_UP
            return None
        pause_s = self._policy.first_pause_s * 2 ** (count - 1)
        log.error("the engine died (%s); starting it again in %.1f s", reason, pause_s)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopped.wait(), pause_s)
            return None
        self._metrics.observe_engine_restart()
        return self._spawn()

    async def _attend(self, process: EngineProcess) -> str:
        """Serves one process until it ends; returns why it ended."""
        reader, writer = await asyncio.open_unix_connection(sock=process.connection)
        writer.write(encode(Start(self._settings)))
        watchdog: asyncio.Task[None] | None = None
        try:
            while True:
                report = await self._receive(reader)
                match report:
                    case Ready(facts):
                        self._attach(writer, facts)
                        watchdog = asyncio.create_task(self._watch(process))
                    case Step(frame):
                        self._client.feed(frame)
                    case Memory():
                        self._client.tell(report)
                    case Progress(message):
                        log.info("%s", message)
                    case Failed(message):
                        if not self._was_ready:
                            raise StartupError(message)
                        return message
        except (asyncio.IncompleteReadError, ConnectionError):
            self._lose()  # before the wait below: nobody waits for a dead engine
            return await self._exit_reason(process)
        except FrameError as error:
            return f"it sent what is no message: {error}"
        finally:
            if watchdog is not None:
                watchdog.cancel()
            writer.close()
            self._lose()

    def _attach(self, writer: asyncio.StreamWriter, facts: EngineFacts) -> None:
        self._client.attach(lambda command: writer.write(encode(command)))
        self._was_ready = True
        self.state = EngineState.READY
        self._on_ready(facts)

    async def _receive(self, reader: asyncio.StreamReader) -> Report:
        prefix = await reader.readexactly(LENGTH.size)
        return self._decoder.report(await reader.readexactly(message_length(prefix)))

    async def _watch(self, process: EngineProcess) -> None:
        """Kills a process whose heartbeat stands still. The time is this loop's own: while it is
        held up itself, it sees no stall."""
        seen, self._still_s = self._heartbeat(), 0.0
        while self._still_s < self._policy.stall_s:
            await asyncio.sleep(self._policy.check_s)
            beat = self._heartbeat()
            self._still_s = 0.0 if beat != seen else self._still_s + self._policy.check_s
            seen = beat
        log.error("the engine made no progress for %.0f s; killing it", self._still_s)
        self._still_s = 0.0
        process.popen.kill()

    def _lose(self) -> None:
        """Every request that is open ends in an error now. Idempotent."""
        self._still_s = 0.0
        if self.state is EngineState.READY:
            self.state = EngineState.STARTING
        self._client.detach(unavailable("The engine stopped while it served the request."))

    async def _exit_reason(self, process: EngineProcess) -> str:
        """How it ended. One that lingers behind its closed socket is killed."""
        try:
            code = await asyncio.to_thread(process.popen.wait, _LINGER_S)
        except subprocess.TimeoutExpired:
            process.popen.kill()
            return "it closed its socket"
        return f"signal {-code}" if code < 0 else f"exit code {code}"
