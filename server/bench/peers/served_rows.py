"""Rows of whole servers: users at once over HTTP, start to first token, resident memory."""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from server.bench.peers.http_load import Answered, ask_together, prompts
from server.bench.peers.models import MODELS, STORED
from server.bench.peers.row import (
    DTYPES,
    INT8,
    Bench,
    Comparison,
    Pairs,
    Row,
    quantization_of,
)
from server.bench.server import free_port, serve_command, started
from server.bench.serving import Batch
from server.config.server_config import resolve as resolve_config
from server.engine.core import EngineCore
from server.engine.request import EngineRequest
from server.memory.backends.native_cpu import NATIVE
from server.startup.model_info import engine_settings, read_model
from server.worker.build import build_engine
from weights.checkpoint.folder import open_checkpoint
from weights.families import resolve as resolve_family

USERS = (8, 16)
PROMPT_TOKENS = OUTPUT_TOKENS = 128
LONG = (16, 1008, 16)  # users, prompt, output: 1,024 tokens each
DEMO_OUTPUT = 512
SLACK_TOKENS = 16  # of llama-server's slots, beside a prompt and its answer
POLL_S = 0.01


@dataclass(frozen=True, slots=True)
class Served:
    """One server: how it is started, and the path that answers 200 when it is ready."""

    command: Callable[[int], Sequence[str]]
    ready: str

    @contextmanager
    def running(self) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
        port = free_port()
        with started(self.command(port), port, self.ready, POLL_S) as process:
            yield port, process


def served_rows() -> list[Row]:
    return [
        *(
            Row(f"served/M/{format}/{users}", partial(_users, "M", format, users))
            for format in ("bf16", INT8)
            for users in USERS
        ),
        *(Row(f"demo/{format}", partial(_demo, format)) for format in ("f32", "bf16")),
        *(
            Row(f"start/{model}/bf16", partial(_start, model, goal))
            for model, goal in (("M", "<= 3 s"), ("L", "<= 4 s"), ("demo", "<= 2 s"))
        ),
        Row("resident/M/bf16", partial(_resident, "M")),
    ]


def _options(folder: Path, format: str) -> dict[str, str]:
    """With the defaults that a user gets, but for the queue: the peer's requests wait there as long
    as it takes. Raises NotServed."""
    quantization = quantization_of(format)
    options = {"model-dir": str(folder), "backend": NATIVE.name, "queue-timeout": "600"}
    options["dtype"] = DTYPES[STORED if quantization else format]
    return options if quantization is None else options | {"quantization": quantization}


def _ours(folder: Path, format: str) -> Served:
    options = _options(folder, format)
    arguments = [options.pop("model-dir"), *(f"--{name}={one}" for name, one in options.items())]
    return Served(partial(serve_command, arguments), "/ready")


def _theirs(bench: Bench, model: str, format: str, users: int, context: int) -> Served:
    gguf = MODELS[model].gguf(bench.cache, format, bench.llama.gguf_package)
    return Served(
        lambda port: bench.llama.server_command(gguf, port, users, context),
        "/health",
    )


def _vocabulary(folder: Path) -> int:
    config = open_checkpoint(folder).config
    return resolve_family(config).spec(config).vocab_size


# -- users at once -----------------------------------------------------------------------------


def _users(model: str, format: str, users: int, bench: Bench) -> list[Comparison]:
    folder = MODELS[model].folder(bench.cache)
    vocabulary = _vocabulary(folder)
    batch = Batch(users, PROMPT_TOKENS, OUTPUT_TOKENS)
    config = resolve_config(_options(folder, format), {})
    core = build_engine(engine_settings(config, read_model(config)), lambda text: None).core
    ours = _ours(folder, format)
    theirs = _theirs(bench, model, format, users, batch.num_tokens + SLACK_TOKENS)
    rate, first, gap = Pairs(), Pairs(), Pairs()
    kept: list[float] = []
    waits: list[float] = []

    def ask(served: Served, turn: int) -> Answered:
        with served.running() as (port, _):
            ask_together(port, prompts(1, 8, vocabulary, seed=-1), 4)  # warms it up
            return ask_together(
                port, prompts(users, PROMPT_TOKENS, vocabulary, turn), OUTPUT_TOKENS
            )

    for turn in bench.rounds():
        offline = users * OUTPUT_TOKENS / _offline(core, batch.requests(vocabulary, turn))
        mine, other = ask(ours, turn), ask(theirs, turn)
        kept.append(mine.tokens_per_second / offline)
        waits.append(mine.median_first / max(mine.first))
        rate.add(mine.tokens_per_second, other.tokens_per_second)
        first.add(mine.median_first, other.median_first)
        gap.add(mine.median_gap, other.median_gap)
    name = f"{model} {format} served to {users}"
    goal = ">= 1.3x" if format == INT8 else ">= 1.25x"
    return [
        rate.comparison(
            name,
            "tokens/s",
            f"{goal}, >= 95 % of offline",
            {"of offline": statistics.median(kept)},
        ),
        first.comparison(
            f"{name}, first token",
            "s",
            "<= 60 % of the last one's",
            {"of the last one's": statistics.median(waits)},
            more_is_better=False,
        ),
        gap.comparison(f"{name}, between tokens", "s", more_is_better=False),
    ]


def _offline(core: EngineCore, requests: Sequence[EngineRequest]) -> float:
    """Seconds that the same engine takes for them without HTTP. Raises ValueError if it refuses."""
    begun = time.perf_counter()
    core.submit(requests)
    while core.has_work:
        frame = core.step()
        if frame is not None and frame.refused:
            raise ValueError(f"the engine refused a request: {frame.refused[0].message}")
    return time.perf_counter() - begun


def _demo(format: str, bench: Bench) -> list[Comparison]:
    """One stream."""
    folder = MODELS["demo"].folder(bench.cache)
    vocabulary = _vocabulary(folder)
    pairs = Pairs()
    with (
        _ours(folder, format).running() as (our_port, _),
        _theirs(bench, "demo", format, 1, 1024).running() as (their_port, _),
    ):
        servers = ((our_port, pairs.ours), (their_port, pairs.theirs))
        for port, _ in servers:  # they warm up
            ask_together(port, prompts(1, 32, vocabulary, -1), DEMO_OUTPUT)
        for turn in bench.rounds():
            for port, rates in servers:
                one = ask_together(port, prompts(1, 32, vocabulary, turn), DEMO_OUTPUT)
                rates.append(one.tokens_per_second)
    return [pairs.comparison(f"demo {format}, one stream", "tokens/s", ">= 1,000")]


# -- from start to the first token, and memory -------------------------------------------------


def _start(model: str, goal: str, bench: Bench) -> list[Comparison]:
    folder = MODELS[model].folder(bench.cache)
    vocabulary = _vocabulary(folder)
    seconds, memory = Pairs(), Pairs()
    servers = (
        (_ours(folder, STORED), seconds.ours, memory.ours),
        (_theirs(bench, model, STORED, 1, 1024), seconds.theirs, memory.theirs),
    )

    def start(served: Served, seed: int) -> tuple[float, float]:
        """Seconds to the first token, and the most gigabytes that were resident by then."""
        begun = time.perf_counter()
        with served.running() as (port, process):
            one = ask_together(port, prompts(1, 8, vocabulary, seed), 2)
            ended = time.perf_counter()
            late = one.seconds - one.first[0]  # from the first token to the last
            return ended - begun - late, _total(process.pid, "status", "VmHWM") / 1e9

    for served, _, _ in servers:
        start(served, -1)  # brings the files into the page cache
    for turn in bench.rounds():
        for served, times, peaks in servers:
            taken, most = start(served, turn)
            times.append(taken)
            peaks.append(most)
    return [
        seconds.comparison(f"{model} start to first token", "s", goal, more_is_better=False),
        memory.comparison(f"{model} most resident by then", "GB", more_is_better=False),
    ]


def _resident(model: str, bench: Bench) -> list[Comparison]:
    """After requests with as many tokens as a laptop's users ask for; once."""
    folder = MODELS[model].folder(bench.cache)
    vocabulary = _vocabulary(folder)
    weights = open_checkpoint(folder).total_bytes
    users, prompt, output = LONG
    pairs = Pairs()
    for served, found in (
        (_ours(folder, STORED), pairs.ours),
        (_theirs(bench, model, STORED, users, prompt + output + SLACK_TOKENS), pairs.theirs),
    ):
        with served.running() as (port, process):
            ask_together(port, prompts(users, prompt, vocabulary, 0), output)
            found.append(_total(process.pid, "smaps_rollup", "Pss") / 1e9)
    return [
        pairs.comparison(
            f"{model} resident after 16 requests of 1,024 tokens",
            "GB",
            f"<= {(weights + (1 << 30)) / 1e9:.2f} (weights and 1 GiB)",
            more_is_better=False,
        )
    ]


def _total(pid: int, file: str, field: str) -> float:
    """Bytes of a process and of all that it started; of one that has ended, none."""
    folder = Path("/proc") / str(pid)
    try:
        lines = (folder / file).read_text().splitlines()
        threads = list((folder / "task").iterdir())
        children = [child for one in threads for child in (one / "children").read_text().split()]
    except OSError:
        return 0.0
    own = sum(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
    return own + sum(_total(int(child), file, field) for child in children)
