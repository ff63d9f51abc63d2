"""One process that renders a chat template, and the bounds that it is held to from outside.

What a template computes is bounded in processor time, read from the process's own clock: a template
cannot escape it, and a busy machine does not use it up. The time on the wall is bounded too, but
generously: it ends a process that stands still.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.text import template_worker

# Ends of a process that need not be the template's doing: another try may go well.
MACHINES = frozenset({"wall", "died"})
_CHECK_S = 0.25  # seconds between two looks at a process's clock, at most
_SHORTEST_CHECK_S = 0.01
_LARGE_BYTES = 256 * 1024  # of a reply that is read in a thread
_ESCAPED = 12  # bytes of a character in JSON, at most


@dataclass(frozen=True, slots=True)
class TemplateLimits:
    """What one rendering may use. ``workers`` bounds how many run at once.

    A conversation of more than ``large`` characters is a large one: it leaves a worker to the
    others. ``wait_seconds`` is how long a chat waits for its turn.
    """

    cpu_seconds: float = 2.0
    wall_seconds: float = 60.0
    wait_seconds: float = 30.0
    memory_bytes: int = 1024 * 1024 * 1024  # address space
    max_characters: int = 4 * 1024 * 1024
    workers: int = 2
    large: int = 64 * 1024


def process_seconds(pid: int) -> float:
    """Processor time that a process has used, in seconds; 0 for one that is there no more."""
    clock = ctypes.c_int()
    if ctypes.CDLL(None).clock_getcpuclockid(ctypes.c_int(pid), ctypes.byref(clock)) != 0:
        return 0.0
    try:
        return time.clock_gettime(clock.value)
    except OSError:
        return 0.0


@dataclass(frozen=True, slots=True)
class Clocks:
    """Seconds: ``cpu`` of a process by its id, ``wall`` of the machine."""

    cpu: Callable[[int], float] = process_seconds
    wall: Callable[[], float] = time.monotonic


class TemplateProcess:
    """A worker process and its two pipes. ``problem`` is why it has not compiled its template."""

    def __init__(
        self, process: asyncio.subprocess.Process, limits: TemplateLimits, clocks: Clocks
    ) -> None:
        self._process = process
        self._limits = limits
        self._clocks = clocks
        self.problem: dict[str, str] | None = None

    @classmethod
    async def spawn(
        cls, source: str, variables: Mapping[str, str], limits: TemplateLimits, clocks: Clocks
    ) -> TemplateProcess:
        """A process that has compiled the template, or has tried to.

        Raises:
            OSError: the machine gives no process.
        """
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            str(Path(template_worker.__file__)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            limit=_ESCAPED * limits.max_characters + 64 * 1024,
            env={},
        )
        worker = cls(process, limits, clocks)
        options = {
            "template": source,
            "variables": dict(variables),
            "memory_bytes": limits.memory_bytes,
            "max_characters": limits.max_characters,
        }
        try:
            reply = await worker.ask(options)
        except BaseException:
            await worker.kill()
            raise
        worker.problem = None if "text" in reply else reply
        return worker

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.returncode is None

    async def ask(self, job: Mapping[str, Any], *, is_large: bool = False) -> dict[str, str]:
        """One job's reply: {"text"}, or {"kind", "error"}. Past a bound the process is killed.

        A large job is written as JSON in a thread, and so is a large reply read.
        """
        line = await asyncio.to_thread(_line, job) if is_large else _line(job)
        exchange = asyncio.create_task(self._exchange(line))
        try:
            past = await self._past_a_bound(exchange)
            if past is not None:
                await self.kill()
                return past
            return await self._reply(exchange)
        finally:
            exchange.cancel()
            await asyncio.gather(exchange, return_exceptions=True)

    async def _past_a_bound(self, exchange: asyncio.Task[bytes]) -> dict[str, str] | None:
        """None once the exchange is over; before that, what it has used too much of."""
        limits, clocks = self._limits, self._clocks
        cpu_before, wall_before = clocks.cpu(self.pid), clocks.wall()
        while True:
            used, waited = clocks.cpu(self.pid) - cpu_before, clocks.wall() - wall_before
            if used >= limits.cpu_seconds:
                told = f"it used {used:.1f} s of processor time and may use {limits.cpu_seconds:g}"
                return {"kind": "cpu", "error": f"{told} s. Send fewer or shorter messages"}
            if waited >= limits.wall_seconds:
                told = f"it was not done after {waited:.0f} s, in which it got {used:.2f} s"
                return {"kind": "wall", "error": f"{told} of processor time"}
            pause = min(limits.cpu_seconds - used, limits.wall_seconds - waited, _CHECK_S)
            await asyncio.wait({exchange}, timeout=max(pause, _SHORTEST_CHECK_S))
            if exchange.done():
                return None

    async def _reply(self, exchange: asyncio.Task[bytes]) -> dict[str, str]:
        try:
            line = exchange.result()
        except ConnectionError:
            line = b""
        if line.endswith(b"\n"):
            if len(line) <= _LARGE_BYTES:
                return dict(json.loads(line))
            return dict(await asyncio.to_thread(json.loads, line))
        code = await self._process.wait()  # it has ended; to kill it now would take its exit code
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        return {"kind": "died", "error": f"its process was ended {how}"}

    async def _exchange(self, line: bytes) -> bytes:
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise ConnectionError("the worker has no pipes")
        stdin.write(line)
        await stdin.drain()
        return await stdout.readline()

    async def kill(self) -> None:
        if self.alive:
            self._process.kill()
        await self._process.wait()


def _line(job: Mapping[str, Any]) -> bytes:
    return json.dumps(job).encode() + b"\n"
