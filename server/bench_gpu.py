"""The engine's rows on a GPU: ``python -m server.bench gpu [--only TEXT] ...``.

Random weights of published shapes are written, loaded from the page cache and served by the engine
without HTTP. A row is one batch: requests that start together, prompts of their own. Of its decode
steps it tells

    TPOT        milliseconds a step, sampling included: the wall clock between two steps' ends
    floor       bytes that a step must read (weights once, every row's keys and values) over the
                bandwidth of a device copy in the same run
    idle        part of the decode time in which the device did nothing: 1 - device time / wall
    first       seconds from submission to the first token

and beside it the same row in batch-invariant mode, and the transformers library's own continuous
batching where that can be imported. Qwen3-0.6B's shape is built without its norms of queries and
keys, which no family has yet. Prints a table, keeps JSON and prints it as the last line.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import torch

from server.bench_peers import transformers_tokens_per_second
from server.bench_shapes import gpu_shapes
from server.engine.core import EngineCore
from server.engine.events import StepStats
from server.engine.request import EngineLimits, EngineRequest, SamplingParams
from server.execution.build import BuiltRunner, build_runner
from server.execution.cuda_graphs import GraphMode
from server.memory.layout import RunnerConfig
from weights.inventory import num_parameters
from weights.spec import ModelSpec
from weights.synthetic import write_checkpoint

RESULTS = Path(__file__).resolve().parents[1] / "kernels" / "bench" / "results"
BLOCK_SIZE = 64
COPY_BYTES = 1 << 30
COPY_ROUNDS = 9
MAX_BATCHED_TOKENS = 8192
INVARIANT_BATCHES = 64  # a row of more is not repeated in batch-invariant mode


@dataclass(frozen=True, slots=True)
class EngineRow:
    """One batch of one shape. ``goal`` is in milliseconds a step, or tokens a second."""

    shape: str
    batch: int
    prompt_tokens: int
    output_tokens: int
    goal: str = ""

    @property
    def name(self) -> str:
        return f"{self.shape} batch {self.batch} prompt {self.prompt_tokens}"


ROWS = (
    EngineRow("llama-3.1-8b", 1, 512, 64, "TPOT <= 4.2 ms"),
    EngineRow("llama-3.1-8b", 64, 1024, 48, ">= 8500 tokens/s"),
    EngineRow("llama-3.1-8b", 256, 1024, 32, ">= 14000 tokens/s"),
    EngineRow("llama-3.1-8b", 1, 8192, 4, "first token <= 205 ms"),
    EngineRow("llama-3.2-1b", 1, 512, 64, "TPOT <= 0.85 ms"),
    EngineRow("llama-3.2-1b", 64, 1024, 48),
    EngineRow("llama-3.2-1b", 256, 1024, 32),
    EngineRow("qwen3-0.6b-without-qk-norm", 1, 512, 64, "TPOT <= 0.8 ms"),
    EngineRow("qwen3-0.6b-without-qk-norm", 256, 512, 64, ">= 22000 tokens/s; idle <= 3 %"),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a row came to. Times in seconds, rates in units a second."""

    row: EngineRow
    batch_invariant: bool
    tpot: float
    decode_tokens_per_second: float
    floor: float
    idle_share: float
    first_token: float
    prefill_tokens_per_second: float

    @property
    def bandwidth_share(self) -> float:
        return self.floor / self.tpot


@dataclass(frozen=True, slots=True)
class Load:
    """One model's way to the device."""

    shape: str
    parameters: int
    load_seconds: float
    load_bytes_per_second: float
    build_seconds: float  # weights, buffers, kernels compiled or read, graphs
    batch_invariant: bool


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m server.bench gpu", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--only", default="", metavar="TEXT", help="rows with TEXT in their name")
    parser.add_argument("--no-peers", action="store_true", help="leave transformers out")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER")
    options = parser.parse_args(arguments)
    rows = [row for row in ROWS if options.only in row.name]
    if not rows:
        parser.error(f"no row has {options.only!r} in its name: {[row.name for row in ROWS]}")
    if not torch.cuda.is_available():
        parser.error("there is no GPU that torch can use")
    return bench(rows, gpu_shapes(), on_gpu=True, peers=not options.no_peers, out=options.results)


def bench(
    rows: Sequence[EngineRow],
    shapes: dict[str, ModelSpec],
    *,
    on_gpu: bool,
    peers: bool,
    out: Path | None,
) -> int:
    """Measures ``rows`` shape by shape; on a CPU only to show that it runs (tests)."""
    device = torch.device("cuda" if on_gpu else "cpu")
    bandwidth = copy_bandwidth(device)
    loads: list[Load] = []
    outcomes: list[Outcome] = []
    others: dict[str, float | None] = {}
    for shape in dict.fromkeys(row.shape for row in rows):
        own = [row for row in rows if row.shape == shape]
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            _write(shapes[shape], folder, on_gpu)
            for invariant in (False, True) if on_gpu else (False,):
                chosen = [r for r in own if not invariant or r.batch <= INVARIANT_BATCHES]
                load, found = _measure_shape(folder, shape, chosen, bandwidth, on_gpu, invariant)
                loads.append(load)
                outcomes += found
            if peers:
                others |= {row.name: _peer(folder, row, device, shapes[shape]) for row in own}
    report = _report(device, bandwidth, loads, outcomes, others)
    _print(bandwidth, loads, outcomes, others)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        (out / f"engine-{stamp}.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))
    return 0


def copy_bandwidth(device: torch.device, num_bytes: int = COPY_BYTES) -> float:
    """Bytes a second, read and written, of a copy within the device: the median of several."""
    if device.type != "cuda":
        num_bytes = min(num_bytes, 1 << 26)
    source = torch.ones(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    rates: list[float] = []
    for _ in range(COPY_ROUNDS):
        _synchronize(device)
        started = time.perf_counter()
        target.copy_(source)
        _synchronize(device)
        rates.append(2 * num_bytes / (time.perf_counter() - started))
    return statistics.median(rates)


def run_row(built: BuiltRunner, row: EngineRow, bandwidth: float, *, seed: int) -> Outcome:
    """One batch from submission to its last token, through the loop that serving uses."""
    core = EngineCore(built.runner, built.kv, _limits(built.layout.config))
    submitted = time.perf_counter()
    core.submit(_requests(built.model, row, seed))
    steps: list[StepStats] = []
    first = None
    while core.has_work:
        frame = core.step()
        if frame is None:
            continue
        if first is None and any(choice.token_ids for choice in frame.choices):
            first = time.perf_counter() - submitted
        if frame.stats is not None:
            steps.append(frame.stats)
    return _outcome(built, row, bandwidth, steps, first or 0.0)


def _outcome(
    built: BuiltRunner, row: EngineRow, bandwidth: float, steps: Sequence[StepStats], first: float
) -> Outcome:
    decode = [s for s in steps if not s.num_prompt_tokens and s.num_rows == row.batch]
    prefill = [s for s in steps if s.num_prompt_tokens]
    if not decode or not prefill:
        raise ValueError(f"{row.name} had no step of prefill or no full step of decode")
    wall = sum(step.step_seconds for step in decode)
    busy = sum(step.forward_seconds + step.sample_seconds for step in decode)
    tpot = statistics.median(step.step_seconds for step in decode)
    return Outcome(
        row=row,
        batch_invariant=built.layout.config.batch_invariant,
        tpot=tpot,
        decode_tokens_per_second=row.batch * len(decode) / wall,
        floor=_step_bytes(built, row) / bandwidth,
        idle_share=max(0.0, 1.0 - busy / wall),
        first_token=first,
        prefill_tokens_per_second=sum(s.num_prompt_tokens for s in prefill)
        / sum(s.step_seconds for s in prefill),
    )


def _step_bytes(built: BuiltRunner, row: EngineRow) -> int:
    """What an average decode step has to read. Of an untied embedding that is a row."""
    weights = built.held.weights()
    total = sum(weights.values()) - weights.get("position", 0)
    if not built.model.tied_unembedding:
        total -= weights["embedding"]
    context = row.prompt_tokens + row.output_tokens // 2
    return total + row.batch * context * built.kv.groups[0].bytes_per_token


def _measure_shape(
    folder: Path,
    shape: str,
    rows: Sequence[EngineRow],
    bandwidth: float,
    on_gpu: bool,
    batch_invariant: bool,
) -> tuple[Load, list[Outcome]]:
    config = _config(rows, on_gpu=on_gpu, batch_invariant=batch_invariant)
    started = time.perf_counter()
    built = build_runner(folder, config, graphs=GraphMode.START)
    load = Load(
        shape=shape,
        parameters=num_parameters(built.model),
        load_seconds=built.report.seconds,
        load_bytes_per_second=built.report.bytes_read / built.report.seconds,
        build_seconds=time.perf_counter() - started,
        batch_invariant=batch_invariant,
    )
    outcomes: list[Outcome] = []
    for row in rows:
        run_row(built, replace(row, output_tokens=min(4, row.output_tokens)), bandwidth, seed=0)
        outcomes.append(run_row(built, row, bandwidth, seed=1))
    del built
    if on_gpu:
        torch.cuda.empty_cache()
    return load, outcomes


def _config(rows: Sequence[EngineRow], *, on_gpu: bool, batch_invariant: bool) -> RunnerConfig:
    most = max(row.batch for row in rows)
    blocks = max(
        row.batch * -(-(row.prompt_tokens + row.output_tokens) // BLOCK_SIZE) for row in rows
    )
    return RunnerConfig(
        format="bf16" if on_gpu else "f32",
        block_size=BLOCK_SIZE,
        num_blocks=blocks,
        max_num_seqs=most,
        max_num_batched_tokens=max(MAX_BATCHED_TOKENS if on_gpu else 64, most),
        max_model_len=max(row.prompt_tokens + row.output_tokens for row in rows),
        max_logit_rows=most,
        max_logprobs=0,
        on_gpu=on_gpu,
        batch_invariant=batch_invariant,
    )


def _limits(config: RunnerConfig) -> EngineLimits:
    return EngineLimits(
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_model_len=config.max_model_len,
        max_logit_rows=config.max_logit_rows,
        max_queued_requests=config.max_num_seqs,
        max_queued_tokens=config.max_num_seqs * config.max_model_len,
        queue_timeout_s=3600.0,
        prefix_caching=False,
    )


def _prompts(model: ModelSpec, row: EngineRow, seed: int) -> list[tuple[int, ...]]:
    draw = random.Random(seed)
    return [
        tuple(draw.randrange(model.vocab_size) for _ in range(row.prompt_tokens))
        for _ in range(row.batch)
    ]


def _requests(model: ModelSpec, row: EngineRow, seed: int) -> list[EngineRequest]:
    sampling = SamplingParams(
        seed=0, temperature=0.0, max_tokens=row.output_tokens, ignore_eos=True
    )
    return [
        EngineRequest(f"bench-{index}", tokens, sampling)
        for index, tokens in enumerate(_prompts(model, row, seed))
    ]


def _peer(folder: Path, row: EngineRow, device: torch.device, model: ModelSpec) -> float | None:
    prompts = [list(tokens) for tokens in _prompts(model, row, seed=1)]
    return transformers_tokens_per_second(folder, prompts, row.output_tokens, device)


def _write(model: ModelSpec, folder: Path, on_gpu: bool) -> None:
    write_checkpoint(model, folder, seed=0, format="bf16" if on_gpu else "f32", sharp=False)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _report(
    device: torch.device,
    bandwidth: float,
    loads: Sequence[Load],
    outcomes: Sequence[Outcome],
    others: dict[str, float | None],
) -> dict[str, object]:
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "cuda": torch.version.cuda,
        },
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "copy_bytes_per_second": bandwidth,
        "loads": [asdict(load) for load in loads],
        "rows": [
            asdict(outcome) | {"bandwidth_share": outcome.bandwidth_share} for outcome in outcomes
        ],
        "transformers_tokens_per_second": others,
    }


def _print(
    bandwidth: float,
    loads: Sequence[Load],
    outcomes: Sequence[Outcome],
    others: dict[str, float | None],
    write: Callable[[str], object] = sys.stdout.write,
) -> None:
    write(f"a copy within the device moves {bandwidth / 1e9:.0f} GB/s\n")
    for load in loads:
        write(
            f"{load.shape}{_mode(load.batch_invariant)}: {load.parameters:,} parameters read at "
            f"{load.load_bytes_per_second / 1e9:.1f} GB/s in {load.load_seconds:.1f} s, ready in "
            f"{load.build_seconds:.1f} s\n"
        )
    head = ("TPOT ms", "tokens/s", "of floor", "idle", "first ms", "prefill/s", "transformers/s")
    write(f"{'row':<52}" + "".join(f"{name:>15}" for name in head) + "  goal\n")
    for one in outcomes:
        other = others.get(one.row.name)
        figures = (
            f"{1e3 * one.tpot:.2f}",
            f"{one.decode_tokens_per_second:.0f}",
            f"{one.bandwidth_share:.0%}",
            f"{one.idle_share:.1%}",
            f"{1e3 * one.first_token:.1f}",
            f"{one.prefill_tokens_per_second:.0f}",
            "-" if other is None else f"{other:.0f}",
        )
        name = one.row.name + _mode(one.batch_invariant)
        write(f"{name:<52}" + "".join(f"{text:>15}" for text in figures) + f"  {one.row.goal}\n")


def _mode(batch_invariant: bool) -> str:
    return " (batch-invariant)" if batch_invariant else ""
