"""The accountant: says at any moment what each byte of a device is for.

The account has the same form for every device:

    total = weights + kv_cache + activations + io + graphs + workspace
          + allocator_slack + runtime + other_processes + free + unaccounted      (always)

Every term but the last is measured by itself: tensors as the sum over live distinct storages, the
rest by the device (server.memory.accounting.cpu, server.memory.accounting.cuda). ``unaccounted`` is
what is then left of the total, and nothing else absorbs it: a foreign allocation is in no list of
tensors, is in use for the allocator and so is not slack, and came after the base, so it shows,
whole, until it is freed. On a CPU Python's own growth under load (requests, block tables, hashes)
is foreign in this sense: small, signed, in view.

Torch-free: whoever holds tensors says how many bytes of each kind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from server.memory.accounting.reading import (
    PARTS,
    DeviceMemory,
    DeviceReading,
    HostUse,
    KindReading,
    MemoryReading,
)
from server.memory.kinds import MemoryKind


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
class AccountingSources:
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
    def __init__(self, sources: AccountingSources) -> None:
        self._sources = sources
        self._peak: dict[MemoryKind, int] = {}

    def read(self) -> MemoryReading:
        """Costs some milliseconds."""
        held = self._sources.held_bytes()
        device = self._sources.device.read()
        kinds = _kinds(held, device)
        for kind, nbytes in kinds.items():
            self._peak[kind] = max(self._peak.get(kind, nbytes), nbytes)
        self._peak[MemoryKind.ACTIVATIONS] = max(
            self._peak[MemoryKind.ACTIVATIONS], self._sources.peak_activation_bytes()
        )
        parts = {
            **device.parts,
            MemoryKind.KV_CACHE: self.split_kv(self._sources.kv_use(), kinds[MemoryKind.KV_CACHE]),
            MemoryKind.UNACCOUNTED: _unaccounted_parts(kinds[MemoryKind.UNACCOUNTED], held, device),
        }
        return MemoryReading(
            total=device.total,
            resident=device.resident,
            kinds={
                kind: KindReading(
                    now=nbytes,
                    peak=self._peak[kind],
                    parts=_named_parts(kind, parts.get(kind, {})),
                    estimated=kind in device.estimated,
                )
                for kind, nbytes in kinds.items()
            },
            anonymous=device.anonymous,
            available=device.available,
            allocator=device.allocator,
            host=self._sources.host(),
        )

    def split_kv(self, use: KVUse, kv_bytes: int) -> dict[str, int]:
        """The parts of the KV cache: what the pool's ``kv_bytes`` are in use for. Costs nothing."""
        sources = self._sources
        tail = (use.reserved_tokens - use.filled_tokens) * sources.kv_token_bytes
        active = use.active_blocks * sources.kv_page_bytes - tail
        cached = use.cached_blocks * sources.kv_page_bytes
        free = kv_bytes - active - cached - tail
        return {"active": active, "cached": cached, "tail_waste": tail, "free": free}


def _named_parts(kind: MemoryKind, found: Mapping[str, int]) -> dict[str, int]:
    """Every part that the kind has: one that this device does not know is 0.

    Raises:
        ValueError: the device tells of a part that no reader would look for.
    """
    names = PARTS.get(kind, ())
    unknown = found.keys() - set(names)
    if unknown:
        raise ValueError(f"{kind} has no part {', '.join(sorted(unknown))}")
    return {name: found.get(name, 0) for name in names}


def _kinds(held: Mapping[MemoryKind, int], device: DeviceReading) -> dict[MemoryKind, int]:
    kinds = {kind: held.get(kind, 0) + device.kinds.get(kind, 0) for kind in MemoryKind}
    kinds[MemoryKind.UNACCOUNTED] = device.total - sum(kinds.values())
    return kinds


def _unaccounted_parts(
    unaccounted: int, held: Mapping[MemoryKind, int], device: DeviceReading
) -> dict[str, int]:
    """What the allocator gave to tensors that are in no list, and what is outside of it."""
    unlisted = 0 if device.in_tensors is None else device.in_tensors - sum(held.values())
    return {"tensors": unlisted, "outside": unaccounted - unlisted}
