"""GPU runners on fake devices, built from checkpoint folders."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import stepping
import torch
from fake_device import FakeDevice, install

import kernels
from server.engine.kv_spec import KVCacheSpec
from server.execution.buffers import allocate
from server.execution.cuda_graphs import GraphMode
from server.execution.gpu_runner import GpuRunner
from server.execution.model import Decoder, rotary_table
from server.memory.layout import Layout, RunnerConfig, build_layout, kv_cache_spec
from weights.checkpoint import open_checkpoint
from weights.families import resolve
from weights.generation import end_of_sequence_ids
from weights.loader import load


@dataclass(frozen=True)
class FakeBuilt:
    runner: GpuRunner
    device: FakeDevice
    layout: Layout
    kv: KVCacheSpec
    eos_token_ids: tuple[int, ...]


def build(
    folder: Path,
    patch: pytest.MonkeyPatch,
    *,
    graphs: GraphMode = GraphMode.LAZY,
    **changes: object,
) -> FakeBuilt:
    return build_from(folder, stepping.small_config(**changes), patch, graphs=graphs)


def build_from(
    folder: Path,
    config: RunnerConfig,
    patch: pytest.MonkeyPatch,
    *,
    graphs: GraphMode = GraphMode.LAZY,
) -> FakeBuilt:
    """A poisoned runner on a new fake device, through which all kernels go from now on."""
    checkpoint = open_checkpoint(folder)
    model = resolve(checkpoint.config).spec(checkpoint.config)
    layout = build_layout(model, replace(config, on_gpu=True))
    cpu = torch.device("cpu")
    loaded = load(checkpoint, model, format=config.format, device=cpu, pack=kernels.pack_linear)
    buffers = allocate(layout, cpu)
    for buffer in buffers.values():  # what is not written must not be read
        if buffer.is_floating_point():
            buffer.fill_(float("nan"))
    table = rotary_table(model, config.max_model_len)
    device = FakeDevice()
    install(device, patch)
    eos_token_ids = end_of_sequence_ids(model, checkpoint.generation_config)
    decoder = Decoder(model, loaded.linears, loaded.tensors, table)
    runner = GpuRunner(decoder, layout, buffers, eos_token_ids, device, graphs=graphs, poison=True)
    kv = kv_cache_spec(model, config.format, config.block_size, config.num_blocks)
    return FakeBuilt(runner, device, layout, kv, eos_token_ids)
