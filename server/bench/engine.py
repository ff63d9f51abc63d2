"""Offline throughput of the engine: scheduler, runner and sampler, without HTTP.

    python -m server.bench [MODEL_DIR] [--synthetic SHAPE] [--format bf16] [--batches 1 8 32] ...

For each batch size, all requests start together with prompts of their own: prefill is the prompt
tokens over the time of the steps that computed them, decode the tokens over the time of the steps
in which every row decoded one. Batch sizes take turns within a round, so that a machine that slows
down slows all of them; figures are medians over rounds with [min..max]. Beside decode stands the
fraction of the memory bandwidth, measured in the same run: bytes that each step must read (weights
once, every row's keys and values) over the time. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from server.bench.serving import Batch, Served, bench_config, decode_step_bytes, serve_batch
from server.bench.shapes import shapes
from server.engine.engine_config import ModelConfig
from server.engine.events import StepStats
from server.errors import StartupError
from server.execution.build import BuiltRunner, build_runner
from server.memory.backends.torch_cpu import TORCH
from server.memory.layout import max_context
from weights.checkpoint.folder import open_checkpoint
from weights.errors import CheckpointError
from weights.families import resolve
from weights.formats import FORMATS
from weights.inventory import num_parameters
from weights.synthetic.checkpoint import write_checkpoint

DEMO = Path(__file__).parents[2] / "weights" / "demo" / "checkpoint"
BLOCK_SIZE = 16
MAX_BATCHED_TOKENS = 2048
EXIT_REFUSED = 2  # as the quire command
READ_BYTES = 1 << 30  # of the bandwidth measurement: well past any cache
READ_ROUNDS = 7


@dataclass(frozen=True, slots=True)
class Options:
    model_dir: Path
    synthetic: str | None
    format: str | None
    threads: int
    batches: tuple[int, ...]
    prompt_tokens: int
    output_tokens: int
    rounds: int

    def batch(self, size: int) -> Batch:
        return Batch(size, self.prompt_tokens, self.output_tokens)


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, least and most of a figure over the rounds."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))

    def show(self, digits: int = 1) -> str:
        return f"{self.median:.{digits}f} [{self.min:.{digits}f}..{self.max:.{digits}f}]"


@dataclass(frozen=True, slots=True)
class Round:
    """Tokens per second of one batch in one round."""

    prefill: float
    decode: float


@dataclass(frozen=True, slots=True)
class Figures:
    """What a batch size came to. Bandwidth is in bytes per second."""

    batch: int
    prefill_tokens_per_second: Spread
    decode_tokens_per_second: Spread
    decode_step_bytes: int
    decode_bytes_per_second: float
    bandwidth_fraction: float


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    torch.set_num_threads(options.threads)
    try:
        with _model_folder(options) as folder:
            built = _build(options, folder)
    except (CheckpointError, StartupError) as error:
        print(
            f"server.bench: {options.model_dir or options.synthetic}: {error}",
            file=sys.stderr,
        )
        return EXIT_REFUSED
    bandwidth = measure_bandwidth()
    rounds: dict[int, list[Round]] = {batch: [] for batch in options.batches}
    for turn in range(-1, options.rounds):  # round -1 warms up and is not counted
        for batch in options.batches:
            result = run_round(built, batch, options, seed=turn)
            if turn >= 0:
                rounds[batch].append(result)
    figures = [_figures(built, batch, rounds[batch], options, bandwidth) for batch in rounds]
    _print(built, options, bandwidth, figures)
    return 0


def measure_bandwidth() -> float:
    """Bytes per second of reading a large buffer with all threads: the median of several."""
    buffer = torch.ones(READ_BYTES // 4)
    rates: list[float] = []
    for _ in range(READ_ROUNDS):
        started = time.perf_counter()
        buffer.sum()
        rates.append(READ_BYTES / (time.perf_counter() - started))
    return statistics.median(rates)


def run_round(built: BuiltRunner, batch: int, options: Options, seed: int) -> Round:
    """One batch from submission to its last token."""
    return rates(serve_batch(built, options.batch(batch), seed), batch)


def rates(served: Served, batch: int) -> Round:
    """Of a batch that was served. Raises ValueError where its steps were of one kind only."""
    prefill, decode = served.prefill_steps, served.full_decode_steps(batch)
    if not prefill or not decode:
        raise ValueError("the round had no step of prefill or no full step of decode")
    return Round(
        prefill=sum(step.num_prompt_tokens for step in prefill) / _seconds(prefill),
        decode=sum(step.num_decode_tokens for step in decode) / _seconds(decode),
    )


def _seconds(steps: Sequence[StepStats]) -> float:
    return sum(step.step_seconds for step in steps)


def _figures(
    built: BuiltRunner, batch: int, rounds: Sequence[Round], options: Options, bandwidth: float
) -> Figures:
    decode = Spread.of([one.decode for one in rounds])
    step_bytes = decode_step_bytes(built, options.batch(batch))
    bytes_per_second = step_bytes * decode.median / batch
    return Figures(
        batch=batch,
        prefill_tokens_per_second=Spread.of([one.prefill for one in rounds]),
        decode_tokens_per_second=decode,
        decode_step_bytes=step_bytes,
        decode_bytes_per_second=bytes_per_second,
        bandwidth_fraction=bytes_per_second / bandwidth,
    )


def _build(options: Options, folder: Path) -> BuiltRunner:
    checkpoint = open_checkpoint(folder)
    model = resolve(checkpoint.config).spec(checkpoint.config)
    batch = options.batch(max(options.batches))
    if batch.num_tokens > max_context(model):
        raise SystemExit(
            f"--prompt-tokens + --output-tokens is {batch.num_tokens}; the model has "
            f"{max_context(model)}"
        )
    config = bench_config(
        ModelConfig(options.format or model.parameter_dtype, TORCH.name),
        [batch],
        block_size=BLOCK_SIZE,
        max_num_batched_tokens=MAX_BATCHED_TOKENS,
    )
    return build_runner(folder, config)


@contextmanager
def _model_folder(options: Options) -> Iterator[Path]:
    """The given folder, or one with random weights that is gone after loading."""
    if options.synthetic is None:
        yield options.model_dir
        return
    with tempfile.TemporaryDirectory() as name:
        write_checkpoint(
            shapes()[options.synthetic],
            Path(name),
            seed=0,
            format=options.format or "bf16",
            sharp=False,
        )
        yield Path(name)


def _print(
    built: BuiltRunner, options: Options, bandwidth: float, figures: Sequence[Figures]
) -> None:
    name = options.synthetic or options.model_dir.name
    report = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "device": {"kind": "cpu", "name": cpu_name(), "threads": options.threads},
        "model": {"name": name, "parameters": num_parameters(built.model)},
        "format": built.layout.config.model.format,
        "prompt_tokens": options.prompt_tokens,
        "output_tokens": options.output_tokens,
        "rounds": options.rounds,
        "memory_bytes_per_second": bandwidth,
        "batches": [asdict(figure) for figure in figures],
    }
    print(f"model {name}: {num_parameters(built.model):,} parameters in {report['format']}")
    print(f"device {cpu_name()}, {options.threads} threads, reads {bandwidth / 1e9:.1f} GB/s")
    print(f"prompts of {options.prompt_tokens} tokens, {options.output_tokens} generated each")
    print(f"{'batch':>5}  {'prefill tokens/s':>32}  {'decode tokens/s':>32}  of bandwidth")
    for figure in figures:
        print(
            f"{figure.batch:>5}  {figure.prefill_tokens_per_second.show():>32}  "
            f"{figure.decode_tokens_per_second.show():>32}  {figure.bandwidth_fraction:.1%}"
        )
    print(json.dumps(report))


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _parse(arguments: Sequence[str] | None) -> Options:
    parser = argparse.ArgumentParser(prog="python -m server.bench", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("model_dir", nargs="?", type=Path, default=DEMO, help="checkpoint (default: the demo)")
    add("--synthetic", choices=sorted(shapes()), help="random weights of a published shape")
    add("--format", choices=sorted(FORMATS), help="of weights and cache (default: the model's)")
    add("--threads", type=int, default=torch.get_num_threads(), help="default %(default)s")
    add("--batches", type=int, nargs="+", default=[1, 8, 32], help="default %(default)s")
    add("--prompt-tokens", type=int, default=256, help="per request; default %(default)s")
    add("--output-tokens", type=int, default=64, help="per request; default %(default)s")
    add("--rounds", type=int, default=5, help="default %(default)s")
    given = parser.parse_args(arguments)
    if min(*given.batches, given.prompt_tokens, given.rounds, given.threads) < 1:
        parser.error("batches, prompt tokens, rounds and threads must be at least 1")
    if given.output_tokens < 3:
        parser.error("--output-tokens must be at least 3, so that there are steps of pure decode")
    return Options(**(vars(given) | {"batches": tuple(given.batches)}))
