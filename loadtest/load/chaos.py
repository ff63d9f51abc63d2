"""Requests that misbehave, and a canary that shows whether others suffer from them.

    cancel        the client closes the connection after some events
    disconnect    it closes right after the first event
    slow_reader   it reads a little, then waits, again and again
    malformed     a body that no server should accept: cut JSON, wrong types, absurd lengths

The canary is one greedy request, sent alone before the run and again and again during it: its
answer must stay the same, to the letter, whatever the others do.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field

from loadtest.client.connection import HttpClient, request_head
from loadtest.client.exchange import Exchange
from loadtest.load.driver import Alteration, Target
from loadtest.stats.records import read_exchange
from loadtest.workload.requests import Job

_SLOW_S = 0.25
_CANARY_PAUSE_S = 1.0
_CANARY_TOKENS = 24
_CANARY_PROMPT = "One, two, three, four, five, six, seven, eight, nine, ten, eleven,"
_BAD: tuple[bytes, ...] = (
    b'{"prompt": "cut',
    b"[]",
    b'{"prompt": 7, "max_tokens": 1}',
    b'{"prompt": "x", "max_tokens": -1}',
    b'{"prompt": "x", "max_tokens": 4294967296}',
    b'{"prompt": "x", "temperature": "hot"}',
    b'{"prompt": "x", "n": 100000}',
    b'{"prompt": "\\ud800", "max_tokens": 1}',
    b"\x00\xff\xfe",
)


class Chaos:
    """Decides for each job by its number and the seed: the same run misbehaves the same way."""

    def __init__(self, shares: Mapping[str, float], seed: int) -> None:
        self._shares = dict(shares)
        self._seed = seed

    def __call__(self, job: Job) -> Alteration:
        if not self._shares:
            return Alteration()
        draw = random.Random(f"{self._seed}:chaos:{job.index}")
        place = draw.random()
        for kind, share in self._shares.items():
            if place < share:
                return _alteration(kind, job, draw)
            place -= share
        return Alteration()


def _alteration(kind: str, job: Job, draw: random.Random) -> Alteration:
    match kind:
        case "cancel":
            return Alteration(kind, cancel_after=draw.randint(1, max(1, job.output_tokens // 2)))
        case "disconnect":
            return Alteration(kind, cancel_after=1)
        case "slow_reader":
            return Alteration(kind, pause_s=_SLOW_S)
        case "malformed":
            return Alteration(kind, content=draw.choice(_BAD))
    raise ValueError(f"no such chaos: {kind}")


@dataclass(slots=True)
class CanaryReport:
    """``changed`` are answers unlike the first, with the second at which each came."""

    asked: int = 0
    first: str | None = None
    changed: list[tuple[float, str]] = field(default_factory=list)
    failed: list[tuple[float, str]] = field(default_factory=list)


class Canary:
    def __init__(self, target: Target, model: str | None, api: str, timeout_s: float) -> None:
        self._client = HttpClient(target.address, timeout_s)
        self._target = target
        body: dict[str, object] = {"max_tokens": _CANARY_TOKENS, "temperature": 0, "stream": True}
        if model is not None:
            body["model"] = model
        if api == "chat":
            body["messages"] = [{"role": "user", "content": _CANARY_PROMPT}]
        else:
            body["prompt"] = _CANARY_PROMPT
        self._content = json.dumps(body).encode()
        self.report = CanaryReport()

    async def ask(self, start: float) -> None:
        """Once; ``start`` is the perf_counter of second 0."""
        target = self._target
        size = len(self._content)
        head = request_head(target.address, "POST", target.path, size, target.headers)
        exchange = Exchange(head, self._content)
        await self._client.send(exchange)
        record = read_exchange(exchange, index=-1, start=start, intended=exchange.began - start)
        self.report.asked += 1
        if not record.ok:
            self.report.failed.append((record.sent, f"{record.outcome}: {record.detail}"))
        elif self.report.first is None:
            self.report.first = record.text
        elif record.text != self.report.first:
            self.report.changed.append((record.sent, record.text))

    async def watch(self, start: float) -> None:
        """Until it is cancelled."""
        while True:
            await self.ask(start)
            await asyncio.sleep(_CANARY_PAUSE_S)

    async def close(self) -> None:
        await self._client.close()
