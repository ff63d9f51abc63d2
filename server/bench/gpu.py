"""The engine's rows on a GPU: ``python -m server.bench gpu [--only TEXT] ...``.

Random weights of published shapes are written, loaded from the page cache and served by the engine
without HTTP. A row is one batch: requests that start together, prompts of their own. Of its decode
steps it tells

    TPOT        milliseconds a step, sampling included: the wall clock between two steps' ends
    floor       bytes that a step must read (weights once, every row's keys and values) over the
                bandwidth of a device copy in the same run
    idle        part of the decode time in which the device did nothing: 1 - device time / wall
    first       seconds from submission to the first token

and beside it the same row in batch-invariant mode. After a shape's own rows come those of the
transformers library's continuous batching; what fails there is a line and ends nothing.
Qwen3-0.6B's shape is built without its norms of queries and keys, which no family has yet. Every
line is printed, and kept in the file of JSON, as it comes; the whole is printed as the last line.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from server.bench.peers.transformers import PeerOutcome, transformers_outcome
from server.bench.record import EngineRow, Load, Outcome, Record
from server.bench.serving import Served, bench_config, decode_step_bytes, serve_batch
from server.bench.shapes import gpu_shapes
from server.engine.engine_config import EngineConfig, ModelConfig
from server.execution.build import BuiltRunner, build_runner, open_device
from server.execution.cuda_graphs import GraphMode
from server.execution.device import Device
from server.memory.backends.record import Backend
from server.memory.backends.triton_cuda import TRITON
from weights.inventory import num_parameters
from weights.spec import ModelSpec
from weights.synthetic.checkpoint import write_checkpoint

RESULTS = Path(__file__).resolve().parents[2] / "kernels" / "bench" / "results"
BLOCK_SIZE = 64
COPY_BYTES = 1 << 30
HOST_COPY_BYTES = 1 << 26  # where the memory is everybody's
COPY_ROUNDS = 9
COPIES = 10  # of a round, so that its ends weigh little
MAX_BATCHED_TOKENS = 8192
INVARIANT_BATCHES = 64  # a row of more is not repeated in batch-invariant mode


# So many output tokens that steps are left in which the whole batch decodes: while the last
# prompts are computed, the first rows decode already.
ROWS = (
    EngineRow("llama-3.1-8b", 1, 512, 64, "TPOT <= 4.2 ms"),
    EngineRow("llama-3.1-8b", 64, 1024, 48, ">= 8500 tokens/s"),
    EngineRow("llama-3.1-8b", 256, 1024, 64, ">= 14000 tokens/s"),
    EngineRow("llama-3.1-8b", 1, 8192, 16, "first token <= 205 ms"),
    EngineRow("llama-3.2-1b", 1, 512, 64, "TPOT <= 0.85 ms"),
    EngineRow("llama-3.2-1b", 64, 1024, 48),
    EngineRow("llama-3.2-1b", 256, 1024, 64),
    EngineRow("qwen3-0.6b-without-qk-norm", 1, 512, 64, "TPOT <= 0.8 ms"),
    EngineRow("qwen3-0.6b-without-qk-norm", 256, 512, 64, ">= 22000 tokens/s; idle <= 3 %"),
)


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
    return bench(rows, gpu_shapes(), TRITON, peers=not options.no_peers, out=options.results)


def bench(
    rows: Sequence[EngineRow],
    shapes: dict[str, ModelSpec],
    backend: Backend,
    *,
    peers: bool,
    out: Path | None,
) -> int:
    """Measures ``rows`` shape by shape; on a CPU only to show that it runs (tests)."""
    device = open_device(backend)
    record = Record(out, device.description, copy_bandwidth(device, backend))
    record.start()
    for shape in dict.fromkeys(row.shape for row in rows):
        own = [row for row in rows if row.shape == shape]
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_checkpoint(shapes[shape], folder, seed=0, format=_format(backend), sharp=False)
            for invariant, chosen in passes(own, backend):
                config = engine_config(chosen, backend, batch_invariant=invariant)
                _measure_shape(folder, shape, chosen, record, config)
                _free()
            for row in own if peers else ():
                record.add_peer(_peer(folder, row, device.torch_device, shapes[shape]))
                _free()
    record.end()
    return 0


def passes(
    rows: Sequence[EngineRow], backend: Backend
) -> Iterator[tuple[bool, Sequence[EngineRow]]]:
    """Which of a shape's rows one runner measures, and whether in batch-invariant mode."""
    yield False, rows
    repeated = [row for row in rows if row.batch <= INVARIANT_BATCHES]
    if backend.batch_invariant and repeated:
        yield True, repeated


def copy_bandwidth(device: Device, backend: Backend) -> float:
    """Bytes a second, read and written, of a copy within the device: the median of several."""
    num_bytes = COPY_BYTES if backend.own_memory else HOST_COPY_BYTES
    source = torch.ones(num_bytes, dtype=torch.uint8, device=device.torch_device)
    target = torch.empty_like(source)
    device.synchronize()
    seconds = [_copy_seconds(device, source, target) for _ in range(COPY_ROUNDS)]
    return 2 * num_bytes / statistics.median(seconds)


def _copy_seconds(device: Device, source: torch.Tensor, target: torch.Tensor) -> float:
    """Of one copy among several, by the device's own clock."""

    def copy() -> None:
        target.copy_(source)

    device.run(copy)  # hides what starting the others costs the host
    before = device.record()
    for _ in range(COPIES):
        device.run(copy)
    after = device.record()
    after.wait()
    return after.seconds_since(before) / COPIES


def run_row(built: BuiltRunner, row: EngineRow, bandwidth: float) -> Outcome:
    """One batch from submission to its last token, after another like it that warms up."""
    serve_batch(built, row.load, seed=0)
    return _outcome(built, row, bandwidth, serve_batch(built, row.load, seed=1))


def _outcome(built: BuiltRunner, row: EngineRow, bandwidth: float, served: Served) -> Outcome:
    prefill, decode = served.prefill_steps, served.full_decode_steps(row.batch)
    if not decode or not prefill:
        raise ValueError(f"{row.name} had no step of prefill or no full step of decode")
    wall = sum(step.step_seconds for step in decode)
    busy = sum(step.forward_seconds + step.sample_seconds for step in decode)
    tpot = statistics.median(step.step_seconds for step in decode)
    return Outcome(
        row=row,
        batch_invariant=built.layout.config.model.batch_invariant,
        tpot=tpot,
        decode_tokens_per_second=row.batch * len(decode) / wall,
        floor=decode_step_bytes(built, row.load) / bandwidth,
        idle_share=max(0.0, 1.0 - busy / wall),
        first_token=served.first_token,
        prefill_tokens_per_second=sum(s.num_prompt_tokens for s in prefill)
        / sum(s.step_seconds for s in prefill),
    )


def _measure_shape(
    folder: Path, shape: str, rows: Sequence[EngineRow], record: Record, config: EngineConfig
) -> None:
    started = time.perf_counter()
    built = build_runner(folder, config, graphs=GraphMode.START)
    record.add_load(
        Load(
            shape=shape,
            parameters=num_parameters(built.model),
            load_seconds=built.report.seconds,
            load_bytes_per_second=built.report.bytes_read / built.report.seconds,
            build_seconds=time.perf_counter() - started,
            batch_invariant=config.model.batch_invariant,
        )
    )
    for row in rows:
        record.add_outcome(run_row(built, row, record.bandwidth))


def engine_config(
    rows: Sequence[EngineRow], backend: Backend, *, batch_invariant: bool
) -> EngineConfig:
    """Just what ``rows`` need. Raises ValueError for none."""
    return bench_config(
        ModelConfig(_format(backend), backend.name, batch_invariant=batch_invariant),
        [row.load for row in rows],
        block_size=BLOCK_SIZE,
        max_num_batched_tokens=MAX_BATCHED_TOKENS if backend.own_memory else 64,
    )


def _peer(folder: Path, row: EngineRow, device: torch.device, model: ModelSpec) -> PeerOutcome:
    prompts = [list(tokens) for tokens in row.load.prompts(model.vocab_size, seed=1)]
    return transformers_outcome(row.name, folder, prompts, row.output_tokens, device)


def _format(backend: Backend) -> str:
    """What --dtype auto would take for weights of 16 bits."""
    return "f32" if backend.weighs_dtype else "bf16"


def _free() -> None:
    """Gives back what the runner before held, so that the next one finds the device empty."""
    gc.collect()
    torch.cuda.empty_cache()  # nothing where no GPU is in use
