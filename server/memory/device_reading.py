"""What a device says of itself and of this process, in the accountant's terms: one form for all.

A device (server.memory.cpu_memory, server.memory.cuda_memory) measures what no tensor can tell. The
accountant adds what tensors hold, and what is then left of the total is ``unaccounted``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from server.memory.layout import MemoryKind

PART_NAMES: tuple[str, ...] = (
    "resident",
    "resident.anonymous",  # of it what the kernel cannot take back; on a CPU
    "available",  # what the machine, or the cgroup's limit, leaves; on a CPU
    "workspace.libraries",  # on a GPU: taken from the allocator by cuBLAS before any tensor of ours
    "allocator.reserved",
    "allocator.in_use",
    "allocator.largest_free",  # the largest piece that is reserved and not in use; GPU only
    "allocator_slack.free",
    "allocator_slack.pending",  # freed, and waiting for another stream; GPU only
    "allocator_slack.rounding",  # sizes are rounded up; GPU only
    "runtime.code",  # on a GPU: kernels loaded and graphs made since the base reading
    "runtime.base",  # what stood before the model: on a GPU the context
    "other_processes.driver",  # kept by the driver for itself, where it says so
    "estimated.runtime",  # 1 where the figure is an estimate
    "estimated.other_processes",
)


@dataclass(frozen=True, slots=True)
class DeviceReading:
    """One moment of one device. Bytes.

    ``resident`` is what this process holds of it. ``kinds`` are bytes that the device measures
    itself; they add to what tensors say. ``parts`` are by PART_NAMES. ``in_tensors`` is what the
    allocator has handed out for tensors, where the device has an allocator that tells.
    """

    total: int
    resident: int
    kinds: Mapping[MemoryKind, int]
    parts: Mapping[str, int] = field(default_factory=dict)
    in_tensors: int | None = None


class DeviceMemory(Protocol):
    """A device that can be read at any time. Costs some milliseconds and waits for nothing."""

    def read(self) -> DeviceReading: ...
