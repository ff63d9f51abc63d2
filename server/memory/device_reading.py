"""What a device says of itself and of this process, in the accountant's terms: one form for all.

A device (server.memory.cpu_memory, server.memory.cuda_memory) measures what no tensor can tell. The
accountant adds what tensors hold, and what is then left of the total is ``unaccounted``.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

from server.memory.layout import MemoryKind
from server.memory.reading import UNREAD, AllocatorReading


@dataclass(frozen=True, slots=True)
class DeviceReading:
    """One moment of one device. Bytes.

    ``resident``, ``anonymous`` and ``available`` are as in MemoryReading. ``kinds`` are bytes that
    the device measures itself; they add to what tensors say. ``parts`` are of those kinds, by the
    names of server.memory.reading.PARTS; ``estimated`` are the kinds that are estimates.
    ``in_tensors`` is what the allocator has handed out for tensors, where the device has an
    allocator that tells.
    """

    total: int
    resident: int
    kinds: Mapping[MemoryKind, int]
    parts: Mapping[MemoryKind, Mapping[str, int]] = field(default_factory=dict)
    estimated: frozenset[MemoryKind] = frozenset()
    anonymous: int = 0
    available: int = 0
    allocator: AllocatorReading = UNREAD
    in_tensors: int | None = None


class DeviceMemory(Protocol):
    """A device that can be read at any time. Costs some milliseconds and waits for nothing."""

    def read(self) -> DeviceReading: ...

    def settle(self) -> None:
        """The engine is built: what was loaded for it since the base belongs to the runtime."""
        ...

    def loading(self) -> AbstractContextManager[None]:
        """Around what makes a driver take memory for us later on, such as capturing a graph."""
        ...
