"""A reading: one moment of one device's account, as the accountant makes it and everybody takes it.

Each kind stands with what it holds now, its peak, and the parts of it that are measured by
themselves. Two places need a reading as a flat row of integers: the block of memory that the two
processes share, and the exporter's list of metrics. Both go by NAMES, and so does nothing else:

    total, resident, ...        the device
    <kind>, <kind>.peak         for every kind
    <kind>.<part>               for every part in PARTS
    estimated.<kind>            1 where the figure is an estimate
    allocator.<state>, host.<what>
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Protocol

from server.memory.kinds import MemoryKind

KV_PARTS = ("active", "cached", "tail_waste", "free")

# The kinds that have parts of their own, in the order in which they are exported.
PARTS: Mapping[MemoryKind, tuple[str, ...]] = MappingProxyType(
    {
        MemoryKind.KV_CACHE: KV_PARTS,
        # In no list of ours; behind the allocator's back.
        MemoryKind.UNACCOUNTED: ("tensors", "outside"),
        # On a GPU: taken from the allocator by cuBLAS before any tensor of ours.
        MemoryKind.WORKSPACE: ("libraries",),
        # ``pending`` was freed and waits for another stream, ``rounding`` is what sizes are rounded
        # up by; GPU only.
        MemoryKind.ALLOCATOR_SLACK: ("free", "pending", "rounding"),
        # ``code`` on a GPU: kernels loaded and graphs made since the base reading. ``base`` stood
        # before the model: on a GPU the context.
        MemoryKind.RUNTIME: ("code", "base"),
        # Kept by the driver for itself, where it says so.
        MemoryKind.OTHER_PROCESSES: ("driver",),
    }
)
# The kinds whose figure is an estimate on a device that does not tell.
MAY_BE_ESTIMATED = (MemoryKind.RUNTIME, MemoryKind.OTHER_PROCESSES)


@dataclass(frozen=True, slots=True)
class KindReading:
    """Bytes of one kind. ``parts`` has the names that PARTS has for the kind, all of them."""

    now: int
    peak: int
    parts: Mapping[str, int] = field(default_factory=dict)
    estimated: bool = False


@dataclass(frozen=True, slots=True)
class AllocatorReading:
    """What the allocator has taken, gives out, and could give out in one piece. Bytes.

    ``largest_free`` is reserved and not in use; only a GPU's allocator tells it.
    """

    reserved: int = 0
    in_use: int = 0
    largest_free: int = 0


UNREAD = AllocatorReading()  # of a device without an allocator that tells


@dataclass(frozen=True, slots=True)
class HostUse:
    """What the engine process holds of the host's memory, in bytes.

    ``pinned`` lies in ``resident``: pages that a GPU copies from and to. ``shared`` is mapped by
    another process too.
    """

    resident: int = 0
    pinned: int = 0
    shared: int = 0


@dataclass(frozen=True, slots=True)
class MemoryReading:
    """One moment of one device. Bytes; the kinds that hold memory add up to ``total``.

    ``resident`` is what the engine process holds of the device. On a CPU ``anonymous`` is what of
    it the kernel cannot take back, and ``available`` what the machine, or the cgroup's limit,
    leaves.
    """

    total: int
    resident: int
    kinds: Mapping[MemoryKind, KindReading]
    anonymous: int = 0
    available: int = 0
    allocator: AllocatorReading = UNREAD
    host: HostUse = field(default_factory=HostUse)

    def with_parts(self, kind: MemoryKind, parts: Mapping[str, int]) -> MemoryReading:
        """The same, but for the parts of one kind."""
        changed = replace(self.kinds[kind], parts=parts)
        return replace(self, kinds={**self.kinds, kind: changed})


# What is shown before the first reading.
NOTHING = MemoryReading(
    total=0,
    resident=0,
    kinds=MappingProxyType(
        {kind: KindReading(0, 0, dict.fromkeys(PARTS.get(kind, ()), 0)) for kind in MemoryKind}
    ),
)

_DEVICE = MappingProxyType(
    {"resident": "resident", "anonymous": "resident.anonymous", "available": "available"}
)
_PEAK = MappingProxyType({kind: f"{kind}.peak" for kind in MemoryKind})
_ESTIMATED = MappingProxyType({kind: f"estimated.{kind}" for kind in MAY_BE_ESTIMATED})
_PART = MappingProxyType(
    {kind: tuple((part, f"{kind}.{part}") for part in parts) for kind, parts in PARTS.items()}
)
_ALLOCATOR = tuple((one.name, f"allocator.{one.name}") for one in fields(AllocatorReading))
_HOST = tuple((one.name, f"host.{one.name}") for one in fields(HostUse))

NAMES: tuple[str, ...] = (
    "total",
    *_DEVICE.values(),
    *(str(kind) for kind in MemoryKind),
    *_PEAK.values(),
    *(name for parts in _PART.values() for _, name in parts),
    *_ESTIMATED.values(),
    *(name for _, name in _ALLOCATOR),
    *(name for _, name in _HOST),
)


def flatten(reading: MemoryReading) -> dict[str, int]:
    """The reading by NAMES."""
    flat = {"total": reading.total}
    flat.update((name, getattr(reading, what)) for what, name in _DEVICE.items())
    for kind, held in reading.kinds.items():
        flat[kind] = held.now
        flat[_PEAK[kind]] = held.peak
    for kind, parts in _PART.items():
        found = reading.kinds[kind].parts
        flat.update((name, found[part]) for part, name in parts)
    flat.update((name, int(reading.kinds[kind].estimated)) for kind, name in _ESTIMATED.items())
    flat.update((name, getattr(reading.allocator, state)) for state, name in _ALLOCATOR)
    flat.update((name, getattr(reading.host, what)) for what, name in _HOST)
    return flat


def unflatten(flat: Mapping[str, int]) -> MemoryReading:
    """The reading that was flattened. A name that is left out is 0."""
    kinds = {
        kind: KindReading(
            now=flat.get(kind, 0),
            peak=flat.get(_PEAK[kind], 0),
            parts={part: flat.get(name, 0) for part, name in _PART.get(kind, ())},
            estimated=kind in _ESTIMATED and bool(flat.get(_ESTIMATED[kind], 0)),
        )
        for kind in MemoryKind
    }
    return MemoryReading(
        total=flat.get("total", 0),
        kinds=kinds,
        allocator=AllocatorReading(**{state: flat.get(name, 0) for state, name in _ALLOCATOR}),
        host=HostUse(**{what: flat.get(name, 0) for what, name in _HOST}),
        **{what: flat.get(name, 0) for what, name in _DEVICE.items()},
    )


# What a device says of itself and of this process, in the accountant's terms: one form for all.
#
# A device (server.memory.accounting.cpu, server.memory.accounting.cuda) measures what no tensor can
# tell. The accountant adds what tensors hold, and what is then left of the total is
# ``unaccounted``.


@dataclass(frozen=True, slots=True)
class DeviceReading:
    """One moment of one device. Bytes.

    ``resident``, ``anonymous`` and ``available`` are as in MemoryReading. ``kinds`` are bytes that
    the device measures itself; they add to what tensors say. ``parts`` are of those kinds, by the
    names of server.memory.accounting.reading.PARTS; ``estimated`` are the kinds that are estimates.
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
