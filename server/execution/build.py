"""A checkpoint folder -> a runner that is ready to run plans.

    open and check the files -> spec -> layout -> load weights -> persistent buffers -> warm up

The caller has already decided every size (RunnerConfig), and with it the device; nothing is fitted
to memory here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

import kernels
from server.engine.kv_spec import KVCacheSpec
from server.errors import StartupError
from server.execution.buffers import allocate
from server.execution.cuda_graphs import GraphMode
from server.execution.device import CudaDevice, compiled_kernels_folder
from server.execution.gpu_runner import GpuRunner
from server.execution.gpu_warm_up import warm_up as warm_up_gpu
from server.execution.held import HeldBytes
from server.execution.live_bytes import PeakMeter
from server.execution.model import Decoder, rotary_table
from server.execution.model_runner import ModelRunner
from server.memory.layout import Layout, RunnerConfig, build_layout, kv_cache_spec, max_context
from server.served_features import unserved_features
from weights.checkpoint import open_checkpoint
from weights.cuda_copies import CudaCopies
from weights.families import resolve
from weights.generation import end_of_sequence_ids
from weights.loader import LoadReport, load
from weights.spec import ModelSpec

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class BuiltRunner:
    """A runner, and what the engine, the accountant and the start-up report want to know of it.

    ``held`` answers with measured bytes at any time; ``warm_up_bytes`` is the measured peak of
    intermediates of the largest step. ``kernel_cache`` is the folder of compiled GPU kernels.
    """

    runner: ModelRunner | GpuRunner
    model: ModelSpec
    layout: Layout
    kv: KVCacheSpec
    eos_token_ids: tuple[int, ...]
    report: LoadReport
    held: HeldBytes
    warm_up_bytes: int
    kernel_cache: str | None = None

    @property
    def peak(self) -> PeakMeter:
        """The most bytes of intermediates that were alive at once."""
        return self.runner.step.peak if isinstance(self.runner, GpuRunner) else self.runner.peak


def build_runner(
    model_dir: Path,
    config: RunnerConfig,
    *,
    num_threads: int | None = None,
    progress: Progress | None = None,
    filling: Callable[[], Progress] | None = None,
    poison: bool = False,
    warm_up: bool = True,
    graphs: GraphMode = GraphMode.LAZY,
    device: CudaDevice | None = None,
) -> BuiltRunner:
    """Loads ``model_dir`` and makes everything that ``config`` says, where it says.

    ``num_threads`` sets torch's threads for the whole process; None leaves them. ``progress`` is
    told the bytes read and all bytes to read; what ``filling`` makes, once that is done, the bytes
    of buffers that are resident and all of them. ``poison`` fills new cache blocks with NaN
    (tests). ``graphs`` says when a GPU's decode steps are captured; ``device`` is the GPU to run
    on, where the caller has opened it already.

    Raises:
        CheckpointError: the folder is refused; the message names file and tensor.
        StartupError: the configuration does not fit the model, or asks for a GPU that is not there,
            or for one whose compiled kernels cannot be kept.
    """
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    checkpoint = open_checkpoint(model_dir)
    model = resolve(checkpoint.config).spec(checkpoint.config)
    _check(model, config)
    layout = build_layout(model, config)
    torch_device = device_of(config)
    kernel_cache = compiled_kernels_folder() if config.on_gpu else None
    loaded = load(
        checkpoint,
        model,
        format=config.format,
        quantization=config.quantization,
        device=torch_device,
        pack=partial(kernels.pack_linear, batch_invariant=config.batch_invariant),
        progress=progress,
        copies=CudaCopies(torch_device) if config.on_gpu else None,
    )
    buffers = allocate(layout, torch_device, None if filling is None else filling())
    table = _rotary_buffer(model, config, buffers)
    eos_token_ids = end_of_sequence_ids(model, checkpoint.generation_config)
    decoder = Decoder(model, loaded.linears, loaded.tensors, table)
    runner: ModelRunner | GpuRunner
    if config.on_gpu:
        device = device or CudaDevice(torch_device.index or 0)
        runner = GpuRunner(
            decoder, layout, buffers, eos_token_ids, device, graphs=graphs, poison=poison
        )
    else:
        runner = ModelRunner(decoder, layout, buffers, eos_token_ids, poison=poison)
    return BuiltRunner(
        runner=runner,
        model=model,
        layout=layout,
        kv=kv_cache_spec(model, config.format, config.block_size, config.num_blocks),
        eos_token_ids=eos_token_ids,
        report=loaded.report,
        held=HeldBytes(model, layout, loaded, buffers, _workspace(runner)),
        warm_up_bytes=_warm_up(runner) if warm_up else 0,
        kernel_cache=kernel_cache,
    )


def device_of(config: RunnerConfig) -> torch.device:
    """Where tensors are made. Raises StartupError for a GPU that is not there."""
    if not config.on_gpu:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise StartupError(
            f"torch {torch.__version__} finds no GPU that it can use; --device cpu serves without"
        )
    return torch.device("cuda", torch.cuda.current_device())


def _workspace(runner: ModelRunner | GpuRunner) -> kernels.AttentionWorkspace:
    return runner.step.workspace if isinstance(runner, GpuRunner) else runner.workspace


def _warm_up(runner: ModelRunner | GpuRunner) -> int:
    return warm_up_gpu(runner) if isinstance(runner, GpuRunner) else runner.warm_up()


def _rotary_buffer(
    model: ModelSpec, config: RunnerConfig, buffers: dict[str, torch.Tensor]
) -> torch.Tensor | None:
    """The layout's own buffer, filled; None for a model without rotary positions."""
    table = rotary_table(model, config.max_model_len)
    return None if table is None else buffers["rotary_table"].copy_(table)


def _check(model: ModelSpec, config: RunnerConfig) -> None:
    missing = unserved_features(model)
    if missing:
        raise StartupError(f"the decoder does not compute {', '.join(missing)}")
    if config.max_model_len > max_context(model):
        raise StartupError(
            f"max_model_len is {config.max_model_len}; the model has positions for"
            f" {max_context(model)}"
        )
    if config.max_logprobs >= model.vocab_size:
        raise StartupError(
            f"max_logprobs is {config.max_logprobs}; the vocabulary has {model.vocab_size} tokens"
        )
