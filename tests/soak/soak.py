"""The clean soak: traffic with crashing clients, after which nothing may be left and nothing amiss.

A third of the time warms up: caches fill, pools grow to what they need. At its end, and after each
further third, all clients stop and the server is read at rest, which is the only state in which two
readings mean the same.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from server.config.options import DEMO_MODEL_DIR
from tests.e2e.server_process import ServerProcess, wait_until
from tests.living import has_ended
from tests.soak import watch
from tests.soak.traffic import Counts, Traffic

MIB = 1024 * 1024
GROWTH_BYTES = MIB  # of a process, from the end of the first third: less than this
CLIENTS = 12
# Fewer places than clients and few blocks: there is a queue, and there are preemptions, and the
# cache has been full before the first third is over. Its books are checked after every step.
OPTIONS: dict[str, Any] = {
    "served-model-name": "demo",
    "max-num-seqs": 8,
    "max-num-batched-tokens": 128,
    "max-model-len": 384,
    "kv-cache-memory": "3MiB",
    "log-format": "json",
}
_SETTLES_S = 60


@dataclass
class Result:
    """What a soak came to. ``faults`` says what did not hold."""

    seconds: float
    counts: Counts
    outcomes: dict[str, int] = field(default_factory=dict)
    routes: dict[str, int] = field(default_factory=dict)
    log_lines: tuple[int, int] = (0, 0)  # lines of finished requests, requests that they are of
    restarts: int = 0
    preemptions: int = 0
    # By process. Memory: at rest after each third; descriptors: before and after.
    memory: dict[str, list[int]] = field(default_factory=dict)
    descriptors: dict[str, tuple[list[str], list[str]]] = field(default_factory=dict)
    raised: dict[str, float] = field(default_factory=dict)  # gauges that are not 0 at the end
    exit_code: int | None = None
    family: list[int] = field(default_factory=list)  # the server's child processes before SIGTERM
    left_running: list[int] = field(default_factory=list)  # those of them that live after it

    @property
    def submitted(self) -> int:
        return self.counts.submitted.total()

    def growth(self, process: str) -> int:
        """Bytes since the end of the first third."""
        return self.memory[process][-1] - self.memory[process][0]

    def faults(self) -> list[str]:
        return [*self._faults_of_counts(), *self._faults_of_rest()]

    def _faults_of_counts(self) -> list[str]:
        counts, ended = self.counts, self.outcomes
        ends = ended.get("stop", 0) + ended.get("length", 0)
        held = {
            f"submitted {self.submitted}, outcomes {ended}": (
                sum(ended.values()) == self.submitted
            ),
            f"submitted {dict(counts.submitted)}, by route {self.routes}": (
                Counter(self.routes) == counts.submitted
            ),
            f"{self.log_lines[0]} log lines of {self.log_lines[1]} requests": (
                self.log_lines == (self.submitted, self.submitted)
            ),
            f"{counts.invalid} invalid": ended.get("invalid", 0) == counts.invalid,
            f"{counts.overloaded} overloaded": ended.get("overloaded", 0) == counts.overloaded,
            f"{ended.get('error', 0)} errors": not ended.get("error", 0),
            # A client that crashes may have been answered just before.
            f"{counts.answered} answered, {counts.crashed} crashed": (
                counts.answered <= ends
                and ends + ended.get("abort", 0) == counts.answered + counts.crashed
            ),
            f"{self.restarts} restarts of the engine": not self.restarts,
        }
        return [what for what, holds in held.items() if not holds] + counts.problems

    def _faults_of_rest(self) -> list[str]:
        faults = [f"{name} is {value:g} at rest" for name, value in self.raised.items()]
        for name, (before, after) in self.descriptors.items():
            if len(after) > len(before):
                faults.append(f"{name}: descriptors {before}, then {after}")
        for name in self.memory:
            if self.growth(name) >= GROWTH_BYTES:
                faults.append(f"{name} grew by {self.growth(name) / MIB:.2f} MiB")
        if self.exit_code != 0:
            faults.append(f"SIGTERM: the server ended with {self.exit_code}")
        if self.left_running:
            faults.append(f"processes are left: {self.left_running}")
        return faults

    def lines(self) -> list[str]:
        counts = self.counts
        share = sum(n for kind, n in counts.kinds.items() if kind.startswith("crash"))
        lines = [
            f"{self.seconds:g} s of traffic: {counts.kinds.total()} clients, "
            f"{share / max(1, counts.kinds.total()):.1%} of them crashed",
            f"  sent       {dict(sorted(counts.kinds.items()))}",
            f"  submitted  {self.submitted}",
            f"  outcomes   {sum(self.outcomes.values())} {self.outcomes}",
            f"  log lines  {self.log_lines[0]} of {self.log_lines[1]} requests; "
            f"{self.preemptions} preemptions; {len(self.family)} child processes, "
            f"{len(self.left_running)} after SIGTERM",
        ]
        for name, readings in self.memory.items():
            before, after = self.descriptors[name]
            row = " ".join(f"{reading / MIB:.2f}" for reading in readings)
            lines.append(
                f"  {name:9}  anonymous MiB after each third: {row} "
                f"({self.growth(name) / 1024:+.0f} KiB); "
                f"descriptors before {len(before)}, after {len(after)}"
            )
        faults = self.faults()
        return [*lines, *(f"  FAULT: {fault}" for fault in faults), *([] if faults else ["  held"])]


def soak(
    seconds: float, log: Path, *, seed: int = 1, say: Callable[[str], None] = lambda line: None
) -> Result:
    """A server of its own for the demo model, so many seconds of traffic, and its end.

    ``log`` gets the server's log. What is amiss stands in the result; AssertionError is raised
    only where the server does not start, or does not end.
    """
    with ServerProcess(DEMO_MODEL_DIR, log, **OPTIONS) as server:
        traffic = Traffic(server.port, CLIENTS, seed)
        result = Result(seconds, traffic.counts)
        processes = {"API": server.process.pid, "engine": server.engine_pid()}
        asyncio.run(traffic.one_of_each())
        _rest(server)
        before = {name: watch.descriptors(pid) for name, pid in processes.items()}
        result.memory = {name: [] for name in processes}
        for third in range(3):
            asyncio.run(traffic.run(seconds / 3))
            _rest(server)
            for name, pid in processes.items():
                result.memory[name].append(watch.anonymous_bytes(pid))
            say(f"{(third + 1) * seconds / 3:.0f} s: {result.submitted} submitted")
        for name, pid in processes.items():
            result.descriptors[name] = (before[name], watch.descriptors(pid))
        result.raised = watch.raised_gauges(server)
        result.outcomes, result.routes = watch.outcomes(server)
        result.restarts = int(server.metric("quire_engine_restarts_total"))
        result.preemptions = int(server.metric("quire_preemptions_total"))
        result.family = watch.descendants(server.process.pid)
        server.terminate()
        result.exit_code = server.process.wait(_SETTLES_S)
        result.left_running = [pid for pid in result.family if not has_ended(pid)]
    result.log_lines = watch.logged_requests(log)
    return result


def _rest(server: ServerProcess) -> None:
    """Until nothing is held; what still is after a while will be told as a fault."""
    _settles(lambda: not watch.raised_gauges(server))
    _settles(lambda: not watch.connections(server))


def _settles(condition: Callable[[], bool]) -> None:
    with contextlib.suppress(AssertionError):  # told by the readings that follow
        wait_until(condition, _SETTLES_S, "at rest")
