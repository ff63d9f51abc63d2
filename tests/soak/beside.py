"""One good client beside heavy ones, in seconds: printed, since they are a machine's and an hour's.

The good client asks for a completion and for /health in turns. It does so alone first and last, as
the control: what it waits for then is the machine, not the heavy clients. Beside each wait for
/health stands the processor time that the API process used meanwhile, which a busy machine does not
lengthen.
"""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from server.config.options import DEMO_MODEL_DIR
from server.text.template_process import process_seconds
from tests.e2e.server_process import ROOT, ServerProcess, wait_until
from tests.soak import watch
from tests.soak.heavy import KINDS
from tests.soak.heavy_clients import GoodClient

MIB = 1024 * 1024
# Goals on two cores that do nothing else.
COMPLETION_S, HEALTH_S = 1.0, 0.2
_BODY = json.dumps({"prompt": "def add(a, b):\n", "max_tokens": 8, "ignore_eos": True}).encode()
_SETTLES_S = 120


@dataclass
class Phase:
    """What the good client saw beside one kind of heavy clients, or alone."""

    kind: str
    completion: GoodClient
    health: GoodClient
    heavy_answers: dict[str, int] = field(default_factory=dict)  # by status; 0: none came
    health_cpu: list[float] = field(default_factory=list)  # of the API process, at each /health
    api_bytes: int = 0  # anonymous memory of the API process, when they are gone

    @property
    def statuses(self) -> Counter[int]:
        return self.completion.statuses + self.health.statuses

    def row(self) -> str:
        cells = [
            f"{percentile(one.seconds, share) * 1000:7.0f}"
            for one in (self.completion, self.health)
            for share in (0.5, 0.99, 1.0)
        ]
        not_200 = {status: n for status, n in self.statuses.items() if status != 200}
        return (
            f"  {self.kind:30} {len(self.completion.seconds):4}  {' '.join(cells)} "
            f"{max(self.health_cpu) * 1000:7.0f}  "
            f"{self.api_bytes / MIB:5.0f} MiB  {not_200 or 'all 200'}  {self.heavy_answers or ''}"
        )


def percentile(seconds: Sequence[float], share: float) -> float:
    """The smallest of ``seconds`` that is not below so large a share of them."""
    ordered = sorted(seconds)
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]


def beside(seconds: float, log: Path, *, say: Callable[[str], None]) -> list[Phase]:
    """``seconds`` of each phase on one server with default options. Says a row as it ends."""
    phases = []
    with ServerProcess(
        DEMO_MODEL_DIR, log, strict=False, **{"served-model-name": "demo"}
    ) as server:
        _measure(server, "", min(seconds, 2))  # what is done for the first time
        say(
            f"good client, {seconds:g} s a phase, milliseconds; its goals on 2 idle cores: "
            f"completion p99 {COMPLETION_S * 1000:g}, /health {HEALTH_S * 1000:g}"
        )
        say(
            f"  {'':30} {'asks':>4}  {'completion p50/p99/max':>23} {'/health p50/p99/max':>23} "
            f"{'its cpu':>7}  {'API after':>9}  good client, heavy ones by status"
        )
        for kind in ("control, before", *KINDS, "control, after"):
            phase = _measure(server, kind, seconds)
            phases.append(phase)
            say(phase.row())
        server.terminate()
        server.process.wait(_SETTLES_S)
    return phases


def _measure(server: ServerProcess, kind: str, seconds: float) -> Phase:
    host = "127.0.0.1"
    phase = Phase(
        kind,
        GoodClient(host, server.port, "/v1/completions", _BODY),
        GoodClient(host, server.port, "/health"),
    )
    before = len(watch.descriptors(server.process.pid))
    with _heavy(kind, server.port, phase.heavy_answers):
        asyncio.run(_in_turns(phase, server.process.pid, seconds))

    def alone_again() -> bool:
        held = len(watch.descriptors(server.process.pid))
        return held <= before and not watch.raised_gauges(server)

    wait_until(alone_again, _SETTLES_S, f"the server has done with: {kind}")
    phase.api_bytes = watch.anonymous_bytes(server.process.pid)
    return phase


async def _in_turns(phase: Phase, api: int, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        await phase.completion.ask()
        before = process_seconds(api)
        await phase.health.ask()
        phase.health_cpu.append(process_seconds(api) - before)


@contextmanager
def _heavy(kind: str, port: int, answers: dict[str, int]) -> Iterator[None]:
    """The heavy clients, while entered; none for a control."""
    if kind not in KINDS:
        yield
        return
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.soak.heavy", kind, str(port)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        if process.stdout is None or process.stdout.readline() != "begun\n":
            raise RuntimeError(f"the heavy clients did not begin: {kind}")
        yield
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=_SETTLES_S)
        answers.update(json.loads(out))
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
