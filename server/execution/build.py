"""A checkpoint folder -> a runner that is ready to run plans.

    open and check the files -> spec -> layout -> load weights -> persistent buffers -> warm up

The caller has already decided every size (EngineConfig), and with it the device; nothing is fitted
to memory here.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

import kernels
from kernels import KernelBackend, LinearWeight
from kernels.dispatch import using
from server.engine.engine_config import EngineConfig
from server.engine.kv_spec import KVCacheSpec
from server.errors import StartupError
from server.execution.buffers import allocate
from server.execution.cuda_graphs import GraphMode
from server.execution.device import Device, OpenedDevice
from server.execution.held import HeldBytes
from server.execution.model import Decoder, fill_position_tables
from server.execution.model_runner import ModelRunner
from server.memory.backends.record import Backend
from server.memory.backends.registry import backend_named
from server.memory.kv_groups import kv_cache_spec
from server.memory.layout import Layout, build_layout, max_context
from server.startup.supported_models import unserved_by, unserved_features
from weights.checkpoint.folder import open_checkpoint
from weights.families import resolve
from weights.generation import end_of_sequence_ids
from weights.loading.loader import LoadReport, load
from weights.spec import ModelSpec

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class BuiltRunner:
    """A runner, and what the engine, the accountant and the start-up report want to know of it.

    ``held`` answers with measured bytes at any time; ``warm_up_bytes`` is the measured peak of
    intermediates of the largest step.
    """

    runner: ModelRunner
    model: ModelSpec
    layout: Layout
    kv: KVCacheSpec
    eos_token_ids: tuple[int, ...]
    report: LoadReport
    held: HeldBytes
    warm_up_bytes: int


def build_runner(
    model_dir: Path,
    config: EngineConfig,
    *,
    num_threads: int | None = None,
    progress: Progress | None = None,
    filling: Callable[[], Progress] | None = None,
    poison: bool = False,
    warm_up: bool = True,
    graphs: GraphMode = GraphMode.LAZY,
    opened: OpenedDevice | None = None,
) -> BuiltRunner:
    """Loads ``model_dir`` and makes everything that ``config`` says, where it says.

    ``num_threads`` sets torch's threads for the whole process; None leaves them. ``progress`` is
    told the bytes read and all bytes to read; what ``filling`` makes, once that is done, the bytes
    of buffers that are resident and all of them. ``poison`` fills new cache blocks with NaN
    (tests). ``graphs`` says when decode steps are captured, where the device captures any;
    ``opened`` is the device to run on, where the caller has opened it already, with its memory's
    accounting, which watches the captures.

    Raises:
        CheckpointError: the folder is refused; the message names file and tensor.
        StartupError: the configuration does not fit the model, the backend cannot run it, or the
            device is not there.
    """
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    checkpoint = open_checkpoint(model_dir)
    model = resolve(checkpoint.config).spec(checkpoint.config)
    backend = backend_named(config.model.backend)
    _check(model, config, backend)
    layout = build_layout(model, config)
    device = open_device(backend) if opened is None else opened.device
    loaded = load(
        checkpoint,
        model,
        format=config.model.format,
        quantization=config.model.quantization,
        quantised=backend.parts.quantised(model),
        packs_tables=backend.packs_tables,
        device=device.torch_device,
        pack=partial(_pack, backend.parts.kernels, batch_invariant=config.model.batch_invariant),
        progress=progress,
        copies=device.copies(),
    )
    buffers = allocate(layout, device.torch_device, None if filling is None else filling())
    tables = fill_position_tables(model, config.scheduler.max_model_len, buffers)
    eos_token_ids = end_of_sequence_ids(model, checkpoint.generation_config)
    if backend.packs_tables and model.tied_unembedding:
        loaded.tensors["embedding"] = loaded.linears["unembedding"].weight
    make: Callable[..., Decoder] = backend.load(backend.decoder_at)
    decoder = make(model, loaded.linears, loaded.tensors, tables, layout, buffers)
    with using(backend.parts.kernels):
        runner = ModelRunner(
            decoder,
            layout,
            buffers,
            eos_token_ids,
            device,
            graphs=graphs,
            around_capture=nullcontext if opened is None else opened.memory.loading,
            poison=poison,
        )
    return BuiltRunner(
        runner=runner,
        model=model,
        layout=layout,
        kv=kv_cache_spec(model, config.cache),
        eos_token_ids=eos_token_ids,
        report=loaded.report,
        held=HeldBytes(model, layout, loaded, buffers, runner.workspace),
        warm_up_bytes=runner.warm_up() if warm_up else 0,
    )


def open_device(backend: Backend) -> Device:
    """Raises StartupError where it is not there."""
    device: Device = backend.load(backend.device_at)()
    return device


def _pack(
    backend: KernelBackend,
    weight: torch.Tensor,
    format: str,
    bias: torch.Tensor | None = None,
    *,
    batch_invariant: bool,
) -> LinearWeight:
    with using(backend):
        return kernels.pack_linear(weight, format, bias, batch_invariant=batch_invariant)


def _check(model: ModelSpec, config: EngineConfig, backend: Backend) -> None:
    missing = unserved_features(model)
    if missing:
        raise StartupError(f"the decoder does not compute {', '.join(missing)}")
    problem = unserved_by(backend, model)
    if problem is not None:
        raise StartupError(f"this model cannot run on {backend.place}: {problem}")
    sizes, quantization = config.scheduler, config.model.quantization
    if quantization is not None and quantization not in backend.quantisations:
        raise StartupError(f"the backend {backend.name} multiplies no weights in {quantization}")
    if sizes.max_model_len > max_context(model):
        raise StartupError(
            f"max_model_len is {sizes.max_model_len}; the model has positions for"
            f" {max_context(model)}"
        )
    if sizes.max_logprobs >= model.vocab_size:
        raise StartupError(
            f"max_logprobs is {sizes.max_logprobs}; the vocabulary has {model.vocab_size} tokens"
        )
