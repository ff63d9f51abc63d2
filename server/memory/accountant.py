"""The accountant: says at any moment what each byte of a device is for.

The books are the same for every device:

    total = weights + kv_cache + activations + io + graphs + workspace
          + allocator_slack + runtime + other_processes + free + unaccounted      (always)

Every term but the last is measured by itself: tensors as the sum over live distinct storages, the
rest by the device (server.memory.cpu_memory, server.memory.cuda_memory). ``unaccounted`` is what is
then left of the total, and nothing else absorbs it: a foreign allocation is in no list of tensors,
is in use for the allocator and so is no slack, and came after the base, so it shows, whole, until
it is freed. On a CPU Python's own growth under load (requests, block tables, hashes) is foreign in
this sense: small, signed, in view.

A reading is plain integers, so that it crosses to another process as it is. Torch-free: whoever
holds tensors says how many bytes of each kind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from server.memory.device_reading import PART_NAMES, DeviceMemory, DeviceReading
from server.memory.layout import MemoryKind

KV_PARTS = ("active", "cached", "tail_waste", "free")
UNACCOUNTED_PARTS = ("tensors", "outside")  # in no list of ours; behind the allocator's back
HOST_PARTS = ("resident", "pinned", "shared")  # of the engine process

READING_NAMES: tuple[str, ...] = (
    "total",
    *(str(kind) for kind in MemoryKind),
    *(f"{kind}.peak" for kind in MemoryKind),
    *(f"kv_cache.{part}" for part in KV_PARTS),
    *(f"unaccounted.{part}" for part in UNACCOUNTED_PARTS),
    *PART_NAMES,
    *(f"host.{part}" for part in HOST_PARTS),
)


@dataclass(frozen=True, slots=True)
class KVUse:
    """The live split of the KV pool, in blocks and tokens.

    ``reserved_tokens`` are slots of active blocks, ``filled_tokens`` those of them that hold a
    token.
    """

    active_blocks: int
    cached_blocks: int
    reserved_tokens: int
    filled_tokens: int


@dataclass(frozen=True, slots=True)
class HostUse:
    """What this process holds of the host's memory, in bytes.

    ``pinned`` lies in ``resident``: pages that a GPU copies from and to. ``shared`` is mapped by
    another process too.
    """

    resident: int = 0
    pinned: int = 0
    shared: int = 0


@dataclass(frozen=True, slots=True)
class Books:
    """Where the accountant looks. The callables are asked at each reading and must not block.

    ``held_bytes`` are sums over live distinct storages by kind, those kinds that tensors have.
    """

    device: DeviceMemory
    held_bytes: Callable[[], Mapping[MemoryKind, int]]
    kv_use: Callable[[], KVUse]
    kv_page_bytes: int
    kv_token_bytes: int
    peak_activation_bytes: Callable[[], int]
    host: Callable[[], HostUse] = HostUse


class Accountant:
    def __init__(self, books: Books) -> None:
        self._books = books
        self._peak: dict[MemoryKind, int] = {}

    def read(self) -> dict[str, int]:
        """One reading: a value in bytes for each of READING_NAMES. Costs some milliseconds."""
        held = self._books.held_bytes()
        device = self._books.device.read()
        kinds = _kinds(held, device)
        for kind, nbytes in kinds.items():
            self._peak[kind] = max(self._peak.get(kind, nbytes), nbytes)
        self._peak[MemoryKind.ACTIVATIONS] = max(
            self._peak[MemoryKind.ACTIVATIONS], self._books.peak_activation_bytes()
        )
        host = self._books.host()
        return {
            **dict.fromkeys(READING_NAMES, 0),
            "total": device.total,
            **{str(kind): nbytes for kind, nbytes in kinds.items()},
            **{f"{kind}.peak": nbytes for kind, nbytes in self._peak.items()},
            **self.split_kv(self._books.kv_use(), kinds[MemoryKind.KV_CACHE]),
            **_unaccounted_parts(kinds[MemoryKind.UNACCOUNTED], held, device),
            **device.parts,
            "host.resident": host.resident,
            "host.pinned": host.pinned,
            "host.shared": host.shared,
        }

    def split_kv(self, use: KVUse, kv_bytes: int) -> dict[str, int]:
        """The KV part of a reading: what the pool's ``kv_bytes`` are in use for. Costs nothing."""
        books = self._books
        tail = (use.reserved_tokens - use.filled_tokens) * books.kv_token_bytes
        active = use.active_blocks * books.kv_page_bytes - tail
        cached = use.cached_blocks * books.kv_page_bytes
        values = (active, cached, tail, kv_bytes - active - cached - tail)
        return {f"kv_cache.{part}": value for part, value in zip(KV_PARTS, values, strict=True)}


def _kinds(held: Mapping[MemoryKind, int], device: DeviceReading) -> dict[MemoryKind, int]:
    kinds = {kind: held.get(kind, 0) + device.kinds.get(kind, 0) for kind in MemoryKind}
    kinds[MemoryKind.UNACCOUNTED] = device.total - sum(kinds.values())
    return kinds


def _unaccounted_parts(
    unaccounted: int, held: Mapping[MemoryKind, int], device: DeviceReading
) -> dict[str, int]:
    """What the allocator gave to tensors that are in no list, and what is outside of it."""
    unlisted = 0 if device.in_tensors is None else device.in_tensors - sum(held.values())
    values = (unlisted, unaccounted - unlisted)
    return {f"unaccounted.{part}": n for part, n in zip(UNACCOUNTED_PARTS, values, strict=True)}
