"""What the driver and torch's allocator say about a GPU's memory, in the accountant's terms.

total        the device's
resident     total - free - what other processes held before this one touched the device
code         the context, loaded kernels and libraries' workspaces: resident, less what the
             allocator reserves
slack        reserved by the allocator, and in no tensor, and in no graph's pool
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from server.memory.snapshot import Snapshot


class GpuMemory:
    """Takes snapshots of one device.

    Args:
        others: bytes that other processes hold on it, read before this one's context was made.
        graph_bytes: bytes of captured graphs' pool.
    """

    def __init__(self, device: torch.device, others: int) -> None:
        self._device = device
        self._others = others
        self.graph_bytes: Callable[[], int] = lambda: 0

    def __call__(self) -> Snapshot:
        started = time.perf_counter()
        free, total = torch.cuda.mem_get_info(self._device)
        reserved = torch.cuda.memory_reserved(self._device)
        in_use = torch.cuda.memory_allocated(self._device)
        resident = max(reserved, total - free - self._others)
        graphs = self.graph_bytes()
        return Snapshot(
            total=total,
            free=free,
            resident=resident,
            code=resident - reserved,
            anonymous=reserved,
            other_mapped=0,
            heap_resident=max(in_use, reserved - graphs),
            heap_in_use=in_use,
            took_s=time.perf_counter() - started,
        )


def warm_gpu(device: torch.device, dtype: torch.dtype, size: int = 1024) -> None:
    """Makes the context and cuBLAS's workspace, which belong to the runtime and not to a model."""
    weight = torch.zeros(size, size, dtype=dtype, device=device)
    for rows in (1, size):
        torch.nn.functional.linear(torch.zeros(rows, size, dtype=dtype, device=device), weight)
    torch.cuda.synchronize(device)
    del weight
    torch.cuda.empty_cache()
