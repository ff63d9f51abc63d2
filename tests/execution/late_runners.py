"""GPU runners on fake devices, built from checkpoint folders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

import kernels
from server.engine.engine_config import EngineConfig
from server.engine.kv_spec import KVCacheSpec
from server.execution.buffers import allocate
from server.execution.cuda_graphs import GraphMode
from server.execution.device import Device
from server.execution.model import build_decoder, fill_position_tables
from server.execution.model_runner import ModelRunner
from server.memory.kv_groups import kv_cache_spec
from server.memory.layout import Layout, build_layout
from tests.engine_configs import engine_config
from tests.execution.fake_device import FakeDevice, install
from weights.checkpoint.folder import open_checkpoint
from weights.families import resolve
from weights.generation import end_of_sequence_ids
from weights.loading.loader import load

Install = Callable[[FakeDevice, pytest.MonkeyPatch], None]


@dataclass(frozen=True)
class FakeBuilt:
    runner: ModelRunner
    device: FakeDevice
    layout: Layout
    kv: KVCacheSpec
    eos_token_ids: tuple[int, ...]


def build(
    folder: Path,
    patch: pytest.MonkeyPatch,
    *,
    graphs: GraphMode = GraphMode.LAZY,
    device: Device | None = None,
    install: Install = install,
    **changes: object,
) -> FakeBuilt:
    config = engine_config(**changes)
    return build_from(folder, config, patch, graphs=graphs, device=device, install=install)


def build_from(
    folder: Path,
    config: EngineConfig,
    patch: pytest.MonkeyPatch,
    *,
    graphs: GraphMode = GraphMode.LAZY,
    device: Device | None = None,
    install: Install = install,
) -> FakeBuilt:
    """A poisoned runner on a new fake device, through which all kernels go from now on; or on
    another device that is given."""
    checkpoint = open_checkpoint(folder)
    model = resolve(checkpoint.config).spec(checkpoint.config)
    layout = build_layout(model, engine_config(config, backend="triton"))
    device = FakeDevice() if device is None else device
    there = device.torch_device
    pack = partial(kernels.pack_linear, batch_invariant=config.model.batch_invariant)
    loaded = load(checkpoint, model, format=config.model.format, device=there, pack=pack)
    buffers = allocate(layout, there)
    for buffer in buffers.values():  # what is not written must not be read
        if buffer.is_floating_point():
            buffer.fill_(float("nan"))
    tables = fill_position_tables(model, config.scheduler.max_model_len, buffers)
    if isinstance(device, FakeDevice):
        install(device, patch)
    eos_token_ids = end_of_sequence_ids(model, checkpoint.generation_config)
    decoder = build_decoder(model, loaded.linears, loaded.tensors, tables, layout, buffers)
    runner = ModelRunner(
        decoder, layout, buffers, eos_token_ids, device, graphs=graphs, poison=True
    )
    kv = kv_cache_spec(model, config.cache)
    return FakeBuilt(runner, device, layout, kv, eos_token_ids)
