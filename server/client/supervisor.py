"""Keeps an engine process running: starts it, watches it, starts it again, and knows when to stop.

    STARTING --Ready--> READY --death or stall--> STARTING (after a pause) ... --> GAVE_UP

A death is the socket's end. A stall is an engine that stands still for as long as
server.client.stillness says, loading or serving; the process is then killed, which makes it a
death. Every open request ends in an error at once. After ``max_restarts`` deaths within
``window_s`` the supervisor gives up and the server exits with code 1, so that whatever started it
can decide: a server that cannot compute must not go on looking like one.
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

from server.client.ipc import IpcEngineClient
from server.client.process import EngineProcess
from server.client.process_activity import activity_of
from server.client.stillness import Patience, Standing, Stillness
from server.client.streams import unavailable
from server.errors import StartupError
from server.ipc.engine_info import EngineInfo, EngineSettings
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
from server.metrics.stats import StepMetrics

_LINGER_S = 1.0

log = logging.getLogger("quire.engine")


class EngineState(StrEnum):
    STARTING = "starting"
    READY = "ready"
    GAVE_UP = "gave_up"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class RestartPolicy(Patience):
    """How often a dead engine is started again, and what counts as dead. Seconds; the pause
    doubles with each death, and the engine is looked at every ``check_s``."""

    max_restarts: int = 3
    window_s: float = 300.0
    first_pause_s: float = 0.5
    check_s: float = 0.1


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
        on_ready: Callable[[EngineInfo], None],
        policy: RestartPolicy | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._spawn = spawn
        self._settings = settings
        self._client = client
        self._metrics = metrics
        self._heartbeat = heartbeat
        self._on_ready = on_ready
        self._policy = policy or RestartPolicy()
        self._clock = clock
        self._deaths: deque[float] = deque()
        self._process: EngineProcess | None = None
        self._decoder = Decoder()
        self._was_ready = False
        self._stillness: Stillness | None = None  # while there is a process
        self._stopped = asyncio.Event()
        self.state = EngineState.STARTING

    @property
    def pid(self) -> int | None:
        """The engine process's id, while there is one."""
        return None if self._process is None else self._process.pid

    @property
    def serves(self) -> bool:
        """The engine is ready, and makes progress as fast as it has until now."""
        return self.state is EngineState.READY and self._standing < Standing.LATE

    @property
    def stalls(self) -> bool:
        """A ready engine has shown no progress for much longer than a step should take."""
        return self._standing >= Standing.DOUBTED

    @property
    def _standing(self) -> Standing:
        return Standing.MOVES if self._stillness is None else self._stillness.standing

    async def run(self, first: EngineProcess, *, told: bool = False) -> None:
        """Attends to ``first`` and its successors; returns when it gave up or was stopped.

        ``told``: the first has its settings already.

        Raises:
            StartupError: the first engine could not be built, or died before it was ready.
        """
        process: EngineProcess | None = first
        while process is not None:
            self._process = process
            try:
                reason = await self._attend(process, told=told and process is first)
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
        now = self._clock()
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

    async def _attend(self, process: EngineProcess, *, told: bool) -> str:
        """Serves one process until it ends; returns why it ended."""
        reader, writer = await asyncio.open_unix_connection(sock=process.connection)
        if not told:
            writer.write(encode(Start(self._settings)))
        stillness = Stillness(self._policy, lambda: activity_of(process.pid))
        self._stillness = stillness
        watchdog = asyncio.create_task(self._watch(process, stillness))
        try:
            while True:
                report = await self._receive(reader)
                match report:
                    case Ready(facts):
                        stillness.begin_serving(facts.largest_step_seconds)
                        self._attach(writer, facts)
                    case Step(frame):
                        stillness.note_frame(frame.stats)
                        self._client.feed(frame)
                    case Memory():
                        self._client.tell(report)
                    case Progress(message):
                        stillness.note_frame()
                        log.info("%s", message)
                    case Failed(message):
                        if not self._was_ready:
                            raise StartupError(message)
                        return message
        except (asyncio.IncompleteReadError, ConnectionError):
            self._lose()  # before the wait below: no request waits for a dead engine
            reason = await self._exit_reason(process)
            return stillness.reason if stillness.standing is Standing.LOST else reason
        except FrameError as error:
            return f"it sent an invalid message: {error}"
        finally:
            watchdog.cancel()
            writer.close()
            self._lose()

    def _attach(self, writer: asyncio.StreamWriter, facts: EngineInfo) -> None:
        self._client.attach(lambda command: writer.write(encode(command)))
        self._was_ready = True
        self.state = EngineState.READY
        self._on_ready(facts)

    async def _receive(self, reader: asyncio.StreamReader) -> Report:
        prefix = await reader.readexactly(LENGTH.size)
        return self._decoder.report(await reader.readexactly(message_length(prefix)))

    async def _watch(self, process: EngineProcess, stillness: Stillness) -> None:
        """Kills a process that stands still for too long. Its requests end at once: what waits for
        a disk inside the kernel cannot die before that answers."""
        while stillness.look(self._policy.check_s, self._heartbeat()) is not Standing.LOST:
            await asyncio.sleep(self._policy.check_s)
        log.error("killing the engine: %s", stillness.reason)
        process.popen.kill()
        self._lose()

    def _lose(self) -> None:
        """Every request that is open ends in an error now. Idempotent."""
        self._stillness = None
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


# The server's own state, as /health and /ready ask for it.


class Health:
    """Implements server.api.state.HealthView over the supervisor.

    A server whose engine loads, or is started again, is alive and not ready. Its engine that stands
    still makes it not ready within a few steps' time, and not alive much later. It is not alive
    either when it has given the engine up.
    """

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self.draining = False

    @property
    def alive(self) -> bool:
        given_up = self._supervisor.state in (EngineState.GAVE_UP, EngineState.STOPPED)
        return not given_up and not self._supervisor.stalls

    @property
    def ready(self) -> bool:
        return self._supervisor.serves and not self.draining

    @property
    def loading(self) -> bool:
        return self._supervisor.state is EngineState.STARTING
