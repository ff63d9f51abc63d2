"""Builds an engine from settings: runner, core, accountant. For its own process, or in this one."""

from __future__ import annotations

import gc
import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import torch

import kernels
from kernels.product_forms import MANY_ROWS, padded_sizes
from server.engine.core import EngineCore
from server.engine_facts import EngineFacts, EngineSettings, gauge_values
from server.errors import StartupError
from server.execution.buffers import dtype_of
from server.execution.build import BuiltRunner, build_runner, device_of
from server.execution.cuda_graphs import GraphMode
from server.execution.gpu_memory import GpuMemory, warm_gpu
from server.execution.gpu_runner import GpuRunner
from server.ipc.gauges import GaugeBlock
from server.memory.accountant import Accountant, Books, KVUse
from server.memory.gpu_device import find_gpu
from server.memory.layout import MemoryKind, RunnerConfig
from server.memory.snapshot import Snapshot, take
from server.option_values import format_size
from weights.checkpoint import open_checkpoint
from weights.errors import CheckpointError
from weights.families import resolve
from weights.fusion import fused_linears
from weights.inventory import inventory
from weights.progress import ProgressBar
from weights.spec import ModelSpec

Progress = Callable[[str], None]
log = logging.getLogger("quire.memory")

_PROGRESS_S = 2.0  # between two lines about loading
_READ_SHARE = 100  # a reading of the memory is taken at most 1/100 of the time
_READ_PAUSE_S = 0.25  # and at most this often
_UNACCOUNTED_BYTES = 8 * 2**20  # the alarm's bound is the larger of this
_UNACCOUNTED_SHARE = 0.03  # and this share of the resident set
_WARM_SIZE = 1024  # rows and columns of the products that make the libraries set themselves up


@dataclass(frozen=True, slots=True)
class BuiltEngine:
    core: EngineCore
    accountant: Accountant
    facts: EngineFacts


def build_engine(settings: EngineSettings, progress: Progress) -> BuiltEngine:
    """Loads the model and makes everything that ``settings`` say.

    Raises:
        StartupError: the folder is refused, or the model does not fit; names what is at fault.
    """
    started = time.monotonic()
    torch.set_num_threads(settings.num_threads)
    loading = loading_display(settings.log_format, progress, sys.stderr)
    try:
        snapshot = _warmed(settings)
        gc.collect()
        base = snapshot()
        built = build_runner(
            Path(settings.model_dir),
            settings.runner,
            progress=loading,
            graphs=GraphMode(settings.cuda_graphs),
        )
        core = EngineCore(built.runner, built.kv, settings.limits, strict=settings.strict_ledger)
    except CheckpointError as error:
        raise StartupError(f"{settings.model_dir}: {error}") from error
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise StartupError(f"out of memory while loading: {error}") from error
    gc.collect()
    gc.freeze()  # what was built lives as long as the engine: no need to look at it again
    accountant = Accountant(base, _books(built, core, snapshot))
    facts = EngineFacts(
        weights={str(name): nbytes for name, nbytes in built.held.weights().items()},
        weights_format=settings.runner.format,
        load_seconds=built.report.seconds,
        ready_seconds=time.monotonic() - started,
        torch_version=str(torch.__version__),
        num_threads=torch.get_num_threads(),
        cpu_capability=_device_name(settings.runner),
        skipped=tuple(f"{item.name}: {item.reason}" for item in built.report.skipped),
        kernel_cache=built.kernel_cache,
    )
    return BuiltEngine(core, accountant, facts)


class GaugePublisher:
    """Writes the engine's gauges at every call, with the latest reading of its memory.

    A reading walks the page tables (milliseconds, more with more memory), so it is taken again
    only when the last one is older than a hundred times what it cost.
    """

    def __init__(self, engine: BuiltEngine, block: GaugeBlock) -> None:
        self._engine = engine
        self._block = block
        self._reading: dict[str, int] = {}
        self._next = 0.0
        self._alarmed = False

    def __call__(self) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._reading = self._engine.accountant.read()
            self._alarm()
            took_s = time.monotonic() - now
            self._next = now + max(_READ_PAUSE_S, _READ_SHARE * took_s)
        self._block.write(gauge_values(self._engine.core.gauges(), self._reading))

    def _alarm(self) -> None:
        """One warning when what nobody explains exceeds its bound, and one when it is back."""
        unaccounted, resident = self._reading["unaccounted"], self._reading["resident"]
        bound = max(_UNACCOUNTED_BYTES, _UNACCOUNTED_SHARE * resident)
        if (abs(unaccounted) > bound) == self._alarmed:
            return
        self._alarmed = not self._alarmed
        log.warning(
            "unaccounted memory is %s of %s resident: %s the bound of %s",
            format_size(unaccounted),
            format_size(resident),
            "above" if self._alarmed else "below",
            format_size(bound),
        )


def loading_display(
    log_format: str, progress: Progress, stream: TextIO
) -> Callable[[int, int], None]:
    """Takes bytes done and bytes to do: a bar where somebody watches the text log, else lines."""
    if log_format == "text" and stream.isatty():
        return ProgressBar(stream)
    return _Loading(progress)


class _Loading:
    """Tells about a long load every few seconds."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._next = time.monotonic() + _PROGRESS_S

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _PROGRESS_S
            self._progress(f"loading: {100 * done // max(1, total)} % of {format_size(total)}")


def _books(built: BuiltRunner, core: EngineCore, snapshot: Callable[[], Snapshot]) -> Books:
    group, runner = built.kv.groups[0], built.runner
    if isinstance(snapshot, GpuMemory) and isinstance(runner, GpuRunner):
        snapshot.graph_bytes = lambda: runner.device.graph_bytes

    def held_bytes() -> dict[MemoryKind, int]:
        held = built.held.by_kind()
        if isinstance(runner, GpuRunner):
            held[MemoryKind.GRAPHS] = runner.device.graph_bytes
        return held

    def kv_use() -> KVUse:
        gauges = core.gauges()
        return KVUse(
            active_blocks=gauges.blocks_active + gauges.blocks_reserved,
            cached_blocks=gauges.blocks_cached,
            reserved_tokens=gauges.kv_tokens_reserved,
            filled_tokens=gauges.kv_tokens_filled,
        )

    return Books(
        held_bytes=held_bytes,
        kv_use=kv_use,
        kv_page_bytes=built.kv.page_bytes,
        kv_token_bytes=group.bytes_per_token,
        peak_activation_bytes=lambda: built.peak.peak_bytes,
        snapshot=snapshot,
    )


def _spec(settings: EngineSettings) -> ModelSpec:
    config = open_checkpoint(Path(settings.model_dir)).config
    return resolve(config).spec(config)


def _warmed(settings: EngineSettings) -> Callable[[], Snapshot]:
    """Makes the libraries set themselves up; returns what reads the device's memory from then."""
    if not settings.runner.on_gpu:
        _warm_libraries(settings.runner, _spec(settings))
        return take
    gpu = find_gpu()  # before torch makes a context
    device = device_of(settings.runner)
    # Of what programs can use: the driver keeps some of what the board has to itself.
    usable = torch.cuda.mem_get_info(device)[1]
    others = 0 if gpu is None else max(0, usable - gpu.free)
    warm_gpu(device, dtype_of(settings.runner.format))
    return GpuMemory(device, others)


def _device_name(config: RunnerConfig) -> str:
    if config.on_gpu:
        return torch.cuda.get_device_name(device_of(config))
    return torch.backends.cpu.get_cpu_capability()


def _warm_libraries(config: RunnerConfig, spec: ModelSpec) -> None:
    """Products of the shapes to come, so that threads start and libraries take what they keep
    before the base reading: it belongs to the runtime and not to the model.

    The weights are never written, so that large ones are pages of zeros that take no memory.
    """
    tokens = min(config.max_num_batched_tokens, _WARM_SIZE)
    for rows in (tokens, 1):
        _product(rows, torch.empty(_WARM_SIZE, _WARM_SIZE))
    if config.format == "f32":
        return
    for shape, most_rows in _product_shapes(config, spec).items():
        weight = torch.empty(shape, dtype=dtype_of(config.format))
        for rows in padded_sizes(min(most_rows, MANY_ROWS - 1)):
            _product(rows, weight, config.format)


def _product(rows: int, weight: torch.Tensor, format: str = "f32") -> None:
    x = torch.zeros(rows, weight.shape[1], dtype=weight.dtype)
    kernels.linear(x, kernels.pack_linear(weight, format))


def _product_shapes(config: RunnerConfig, spec: ModelSpec) -> dict[tuple[int, int], int]:
    """[out, in] of every matrix that the model multiplies by, and the most rows it meets."""
    shapes = {parameter.name: parameter.shape for parameter in inventory(spec)}
    found = {(spec.vocab_size, spec.hidden_size): config.logit_rows}
    for linear in fused_linears(spec):
        parts = [shapes[f"{part}.weight"] for part in linear.parts]
        shape = (sum(part[0] for part in parts), parts[0][1])
        if linear.name != "unembedding":
            found[shape] = config.max_num_batched_tokens
    return found
