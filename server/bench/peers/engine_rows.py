"""Rows of the engine without HTTP: one stream's decoding and prefill, eight streams, and what a
step costs beside its kernels."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from kernels.cpu.native.library import Pool
from server.bench.engine import rates
from server.bench.peers.llama_cpp import BatchSpeed
from server.bench.peers.models import MODELS, STORED
from server.bench.peers.row import INT8, Bench, Comparison, Pairs, Row, quantization_of
from server.bench.serving import Batch, bench_config, decode_step_bytes, serve_batch
from server.engine.engine_config import ModelConfig
from server.execution.build import BuiltRunner, build_runner
from server.memory.backends.native_cpu import NATIVE
from weights.inventory import Component, inventory

# The middle of 32 tokens' decoding has a context of 256.
ONE = Batch(1, 240, 32)
PROMPT = Batch(1, 1024, 3)
EIGHT = Batch(8, 64, 32)
WARM = Batch(1, 32, 4)
ANSWER = Batch(1, 8, 128)  # whose steps are nearly all of one token

_CASES = (
    ("S", ("f32", "bf16", "f16", INT8)),
    ("M", ("bf16", INT8)),
    ("L", ("bf16", INT8)),
)
_DECODE_GOALS = {
    "S": ">= 1.3x",
    INT8: ">= 85 % of reading, >= 1.2x",
    "bf16": ">= 90 % of reading, >= 1x",
}


def engine_rows() -> list[Row]:
    rows = [
        Row(f"engine/{model}/{format}", partial(_engine, model, format))
        for model, formats in _CASES
        for format in formats
    ]
    return [*rows, Row("overhead/S/f32", partial(_overhead, "S", "f32"))]


def build(folder: Path, format: str, threads: int, *batches: Batch) -> BuiltRunner:
    """Ours, with the backend's own sizes of steps and blocks. Raises NotServed."""
    quantization = quantization_of(format)
    model = ModelConfig(
        STORED if quantization else format,
        NATIVE.name,
        quantization=quantization,
        num_threads=threads,
    )
    config = bench_config(
        model,
        batches,
        block_size=NATIVE.defaults.block_size,
        max_num_batched_tokens=NATIVE.defaults.max_num_batched_tokens,
    )
    return build_runner(folder, config, num_threads=threads)


def _engine(model: str, format: str, bench: Bench) -> list[Comparison]:
    folder = MODELS[model].folder(bench.cache)
    built = build(folder, format, bench.threads, ONE, PROMPT, EIGHT)
    gguf = MODELS[model].gguf(bench.cache, format, bench.llama.gguf_package)
    serve_batch(built, WARM, seed=-1)
    decode, prefill, eight = Pairs(), Pairs(), Pairs()
    bench.measure_limits()
    for turn in bench.rounds():
        for pairs, batch in ((decode, ONE), (eight, EIGHT)):
            ours = rates(serve_batch(built, batch, turn), batch.size).decode
            pairs.add(ours, _theirs(bench, gguf, batch).decode)
        ours = rates(serve_batch(built, PROMPT, turn), 1).prefill
        prefill.add(ours, _theirs(bench, gguf, PROMPT).prefill)
    bench.measure_limits()
    name = f"{model} {format}"
    goal = _DECODE_GOALS.get(model) or _DECODE_GOALS[format]
    return [
        decode.comparison(
            f"{name} decode at context 256", "tokens/s", goal, _shares(built, ONE, decode, bench)
        ),
        prefill.comparison(f"{name} prefill of 1,024", "tokens/s", ">= 1x"),
        eight.comparison(
            f"{name} eight streams",
            "tokens/s",
            ">= 80 % of min(reading, product), >= 1.3x",
            _shares(built, EIGHT, eight, bench),
        ),
    ]


def _theirs(bench: Bench, gguf: Path, batch: Batch) -> BatchSpeed:
    return bench.llama.batch_speed(gguf, batch.size, batch.prompt_tokens, batch.output_tokens)


def _shares(built: BuiltRunner, batch: Batch, pairs: Pairs, bench: Bench) -> dict[str, float]:
    """Of what this machine reads a second, and of the smaller of what it reads and multiplies."""
    steps = statistics.median(pairs.ours) / batch.size  # a second
    nbytes = decode_step_bytes(built, batch)
    operations = 2 * batch.size * multiplied(built)
    floor = max(nbytes / bench.limits.read, operations / bench.limits.product)
    return {
        "of reading": steps * nbytes / bench.limits.read,
        "of min(reading, product)": steps * floor,
    }


def multiplied(built: BuiltRunner) -> int:
    """Weights that a token is multiplied by."""
    tied = built.model.tied_unembedding
    tables = {Component.POSITION} if tied else {Component.POSITION, Component.EMBEDDING}
    return sum(
        one.num_elements
        for one in inventory(built.model)
        if len(one.shape) == 2 and one.component not in tables
    )


# -- what a step costs beside its kernels ------------------------------------------------------


def _overhead(model: str, format: str, bench: Bench) -> list[Comparison]:
    built = build(MODELS[model].folder(bench.cache), format, bench.threads, ANSWER)
    serve_batch(built, WARM, seed=-1)
    shares = Pairs()
    for turn in bench.rounds():
        with _kernel_seconds() as spent:
            served = serve_batch(built, ANSWER, turn)
        shares.ours.append(100 * (1 - sum(spent) / sum(one.step_seconds for one in served.steps)))
    return [shares.comparison(f"{model} {format} step outside kernels", "%", "<= 5 %")]


@contextmanager
def _kernel_seconds() -> Iterator[list[float]]:
    """While entered, the seconds of every program of native kernels that runs."""
    spent: list[float] = []
    run = Pool.run

    def timed(*arguments: Any, **named: Any) -> None:
        started = time.perf_counter()
        run(*arguments, **named)
        spent.append(time.perf_counter() - started)

    setattr(Pool, "run", timed)  # noqa: B010 - an assignment to a method is no assignment to mypy
    try:
        yield spent
    finally:
        setattr(Pool, "run", run)  # noqa: B010
