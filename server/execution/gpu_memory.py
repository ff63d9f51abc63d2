"""Opens a GPU and its memory account: the context, the libraries' handles, then the base reading.

Handles of cuBLAS and cuBLASLt belong to a stream, and each takes tens of MiB of the allocator's
memory as it is first used. So they are made here, on the stream that the engine computes on, and
the account knows them before there is a model.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from server.engine.engine_config import EngineConfig
from server.execution.buffers import dtype_of
from server.execution.device import CudaDevice, OpenedDevice, compiled_kernels_folder, cuda_index
from server.memory.accounting.cuda import CudaMemory, steady
from server.memory.accounting.cuda_allocator import AllocatorState, Pool, allocator_state
from server.memory.accounting.gpu_device import find_gpu
from server.memory.accounting.nvml import DeviceUse

_WARM_SIZE = 1024  # rows and columns of products that make the libraries set themselves up


def open_gpu(config: EngineConfig, model_dir: Path) -> OpenedDevice:
    """The device that everything is to be run on, and its memory; the folder says nothing of them.

    Raises:
        StartupError: there is no GPU that torch can use, or its compiled kernels cannot be kept.
    """
    found = find_gpu()
    nvml = None if found is None else found.nvml
    before = None if nvml is None else steady(nvml.read)  # torch makes a context below
    index = cuda_index()
    device = CudaDevice(index, compiled_kernels_folder())
    set_up_libraries(device, dtype_of(config.model.format))

    def use() -> DeviceUse:
        return (None if nvml is None else nvml.read()) or _asked_of_torch(index)

    def allocator() -> AllocatorState:
        return read_allocator(index, device.graph_pool)

    return OpenedDevice(device, CudaMemory(use, allocator, before=before, pid=os.getpid()))


def set_up_libraries(device: CudaDevice, dtype: torch.dtype) -> None:
    """Products on the device's own stream, with and without a bias: of cuBLAS and cuBLASLt."""

    def products() -> None:
        for kind in {dtype, torch.float32}:
            weight = torch.zeros(_WARM_SIZE, _WARM_SIZE, dtype=kind, device=device.torch_device)
            for rows in (1, _WARM_SIZE):
                for bias in (None, weight[0]):
                    torch.nn.functional.linear(weight[:rows], weight, bias)

    device.run(products)
    device.synchronize()
    torch.cuda.empty_cache()


def read_allocator(index: int, graph_pool: Pool) -> AllocatorState:
    """One snapshot of torch's allocator, of one device."""
    segments: list[dict[str, Any]] = torch.cuda.memory_snapshot()  # type: ignore[no-untyped-call]
    return allocator_state((one for one in segments if one["device"] == index), (graph_pool,))


def _asked_of_torch(index: int) -> DeviceUse:
    """Where there is no NVML: the device's total and what is free, no process and no driver."""
    free, total = torch.cuda.mem_get_info(index)
    return DeviceUse(total=total, free=free)
