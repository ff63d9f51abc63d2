"""The CPU as a device: this process's share of the machine.

    resident  = tensors + allocator_slack + runtime + unaccounted
    runtime   = loaded code, read live + what the process had written before it loaded the model
    others    = total - available - what this process has written

``base`` is the snapshot from that time: later memory in no list of tensors shows as unaccounted.

Loaded code is resident and yet available: the kernel can take its pages back, and in a container
it charges them to whoever read them first. So it is not part of what others are told from, and
``free``, which is what is left of the total, reads low by it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from server.memory.accounting.process import Snapshot, take
from server.memory.accounting.reading import AllocatorReading, DeviceReading
from server.memory.kinds import MemoryKind


class CpuMemory:
    """Implements server.memory.accounting.reading.DeviceMemory."""

    def __init__(self, base: Snapshot, snapshot: Callable[[], Snapshot] = take) -> None:
        self._base_bytes = base.own
        self._snapshot = snapshot

    def settle(self) -> None:
        """Loaded code is read live, so there is nothing to settle."""

    def loading(self) -> AbstractContextManager[None]:
        """Likewise."""
        return nullcontext()

    def read(self) -> DeviceReading:
        now = self._snapshot()
        others = max(0, now.total - now.free - now.anonymous)
        others = min(others, max(0, now.total - now.resident))
        return DeviceReading(
            total=now.total,
            resident=now.resident,
            kinds={
                MemoryKind.ALLOCATOR_SLACK: now.heap_slack,
                MemoryKind.RUNTIME: now.code + self._base_bytes,
                MemoryKind.OTHER_PROCESSES: others,
                MemoryKind.FREE: now.total - now.resident - others,
            },
            parts={
                MemoryKind.ALLOCATOR_SLACK: {"free": now.heap_slack},
                MemoryKind.RUNTIME: {"code": now.code, "base": self._base_bytes},
            },
            anonymous=now.anonymous,
            available=now.free,
            allocator=AllocatorReading(reserved=now.heap_resident, in_use=now.heap_in_use),
        )
