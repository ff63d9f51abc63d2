"""Opens a GPU and its books: the context, the libraries' handles, then the base reading.

Handles of cuBLAS and cuBLASLt belong to a stream, and each takes tens of MiB of the allocator's
memory as it is first used. So they are made here, on the stream that the engine computes on, and
the books know them before there is a model.
"""

from __future__ import annotations

import os
from typing import Any

import torch

from server.execution.buffers import dtype_of
from server.execution.device import CudaDevice
from server.memory.cuda_allocator import AllocatorState, Pool, allocator_state
from server.memory.cuda_memory import CudaMemory
from server.memory.nvml import DeviceUse, Nvml

_WARM_SIZE = 1024  # rows and columns of products that make the libraries set themselves up


def open_gpu(
    nvml: Nvml | None, before: DeviceUse | None, index: int, format: str
) -> tuple[CudaDevice, CudaMemory]:
    """The device that everything is to be run on, and its books.

    ``before`` is what NVML said when no context of this process was there.
    """
    device = CudaDevice(index)
    set_up_libraries(device, dtype_of(format))

    def use() -> DeviceUse:
        return (None if nvml is None else nvml.read()) or _asked_of_torch(index)

    def allocator() -> AllocatorState:
        return read_allocator(index, device.graph_pool)

    return device, CudaMemory(use, allocator, before=before, pid=os.getpid())


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
