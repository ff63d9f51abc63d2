"""Requests that start together at a server over HTTP, and when their tokens came.

The one client of every server: streamed completions of prompts that are token ids.
"""

from __future__ import annotations

import http.client
import json
import random
import statistics
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise

from server.bench.server import ANSWER_S, HOST

_ANSWER_S = 5 * ANSWER_S


@dataclass(frozen=True, slots=True)
class Answered:
    """Of requests that started together, in seconds from then; ``gaps`` between two chunks."""

    tokens: int
    seconds: float
    first: tuple[float, ...]
    gaps: tuple[float, ...]

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def median_first(self) -> float:
        return statistics.median(self.first)

    @property
    def median_gap(self) -> float:
        return statistics.median(self.gaps) if self.gaps else 0.0


def prompts(count: int, tokens: int, vocab_size: int, seed: int) -> list[list[int]]:
    """Random, each its own; no special token."""
    draw = random.Random(seed)
    return [[draw.randrange(3, vocab_size) for _ in range(tokens)] for _ in range(count)]


def ask_together(port: int, asked: Sequence[list[int]], output_tokens: int) -> Answered:
    """Raises OSError and ValueError where one is not answered in full."""
    times: list[list[float]] = [[] for _ in asked]
    errors: list[Exception] = []
    gate = threading.Barrier(len(asked) + 1)

    def ask(index: int) -> None:
        connection = http.client.HTTPConnection(HOST, port, timeout=_ANSWER_S)
        try:
            connection.connect()
            gate.wait()
            _stream(connection, asked[index], output_tokens, times[index])
        except (OSError, ValueError, http.client.HTTPException, threading.BrokenBarrierError) as e:
            gate.abort()
            errors.append(e)
        finally:
            connection.close()

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(len(asked))]
    for thread in threads:
        thread.start()
    with suppress(threading.BrokenBarrierError):  # of one that could not connect, raised below
        gate.wait()
    started = time.perf_counter()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return Answered(
        tokens=len(asked) * output_tokens,
        seconds=max(one[-1] for one in times) - started,
        first=tuple(one[0] - started for one in times),
        gaps=tuple(late - early for one in times for early, late in pairwise(one)),
    )


def _stream(
    connection: http.client.HTTPConnection, prompt: list[int], tokens: int, times: list[float]
) -> None:
    body = {
        "prompt": prompt,
        "max_tokens": tokens,
        "temperature": 0.0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    headers = {"content-type": "application/json"}
    connection.request("POST", "/v1/completions", json.dumps(body), headers)
    answer = connection.getresponse()
    if answer.status != 200:
        raise ValueError(f"status {answer.status}: {answer.read(300)!r}")
    counted = None
    while line := answer.readline():
        if not line.startswith(b"data: {"):
            continue
        now = time.perf_counter()
        chunk = json.loads(line[6:])
        if any(choice.get("text") for choice in chunk.get("choices", ())):
            times.append(now)
        usage = chunk.get("usage")
        counted = usage["completion_tokens"] if usage else counted
    if counted != tokens or not times:
        raise ValueError(f"{counted} tokens came of {tokens}")
