"""The accountant: says at any moment what each byte of the device is for.

On a CPU the device is this process's share of the machine, and its books are

    total     = sum of all kinds                                    (always, by construction)
    resident  = weights + kv_cache + activations + io + graphs + workspace   (tensors held)
              + allocator_slack + runtime + unaccounted

Every term but one is measured by itself: tensors as the sum over live distinct storages, slack and
loaded code from the kernel and malloc (server.memory.snapshot), and the base, what the process had
written before it loaded the model, read once at that time. ``unaccounted`` is what is left of the
resident set, and nothing else absorbs it: a foreign allocation is in no list of tensors, is in use
for malloc and so is no slack, and came after the base, so it shows, whole, until it is freed.
Python's own growth under load (requests, block tables, hashes) is foreign in this sense: small,
signed, in view.

A reading is plain integers, so that it crosses to another process as it is. Torch-free: whoever
holds tensors says how many bytes of each kind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from server.memory.layout import MemoryKind
from server.memory.snapshot import Snapshot, take

KV_PARTS = ("active", "cached", "tail_waste", "free")
_EXTRA = ("resident", "runtime.code", "runtime.base", "heap_resident", "heap_in_use")

READING_NAMES: tuple[str, ...] = (
    "total",
    *(str(kind) for kind in MemoryKind),
    *(f"{kind}.peak" for kind in MemoryKind),
    *(f"kv_cache.{part}" for part in KV_PARTS),
    *_EXTRA,
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
class Books:
    """Where the accountant looks. The callables are asked at each reading and must not block.

    ``held_bytes`` are sums over live distinct storages by kind, those kinds that tensors have.
    """

    held_bytes: Callable[[], Mapping[MemoryKind, int]]
    kv_use: Callable[[], KVUse]
    kv_page_bytes: int
    kv_token_bytes: int
    peak_activation_bytes: Callable[[], int]
    snapshot: Callable[[], Snapshot] = take


class Accountant:
    """Reads the books. ``base`` is the snapshot from before the model was loaded."""

    def __init__(self, base: Snapshot, books: Books) -> None:
        self._base_bytes = base.own
        self._books = books
        self._peak: dict[str, int] = {}

    def read(self) -> dict[str, int]:
        """One reading: a value in bytes for each of READING_NAMES. Costs some milliseconds."""
        snapshot = self._books.snapshot()
        kinds = self._kinds(snapshot)
        for kind, nbytes in kinds.items():
            self._peak[kind] = max(self._peak.get(kind, nbytes), nbytes)
        self._peak[MemoryKind.ACTIVATIONS] = max(
            self._peak[MemoryKind.ACTIVATIONS], self._books.peak_activation_bytes()
        )
        return {
            "total": snapshot.total,
            **{str(kind): nbytes for kind, nbytes in kinds.items()},
            **{f"{kind}.peak": nbytes for kind, nbytes in self._peak.items()},
            **self._kv_parts(kinds[MemoryKind.KV_CACHE]),
            "resident": snapshot.resident,
            "runtime.code": snapshot.code,
            "runtime.base": self._base_bytes,
            "heap_resident": snapshot.heap_resident,
            "heap_in_use": snapshot.heap_in_use,
        }

    def _kinds(self, snapshot: Snapshot) -> dict[MemoryKind, int]:
        kinds = dict.fromkeys(MemoryKind, 0)
        kinds.update(self._books.held_bytes())
        kinds[MemoryKind.ALLOCATOR_SLACK] = snapshot.heap_slack
        kinds[MemoryKind.RUNTIME] = snapshot.code + self._base_bytes
        kinds[MemoryKind.UNACCOUNTED] = snapshot.resident - sum(kinds.values())
        others = max(0, snapshot.total - snapshot.free - snapshot.resident)
        kinds[MemoryKind.OTHER_PROCESSES] = others
        kinds[MemoryKind.FREE] = snapshot.total - snapshot.resident - others
        return kinds

    def _kv_parts(self, kv_bytes: int) -> dict[str, int]:
        use, books = self._books.kv_use(), self._books
        tail = (use.reserved_tokens - use.filled_tokens) * books.kv_token_bytes
        active = use.active_blocks * books.kv_page_bytes - tail
        cached = use.cached_blocks * books.kv_page_bytes
        values = (active, cached, tail, kv_bytes - active - cached - tail)
        return {f"kv_cache.{part}": value for part, value in zip(KV_PARTS, values, strict=True)}
