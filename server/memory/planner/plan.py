"""What a memory plan says, and what is said where there is none. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from server.engine.engine_config import EngineConfig
from server.engine.kv_spec import KVCacheSpec
from server.errors import StartupError
from server.memory.backends.record import Backend
from server.memory.backends.registry import backend_named
from server.memory.kinds import MemoryKind
from server.memory.layout import Layout

_PLANNED = (
    MemoryKind.WEIGHTS,
    MemoryKind.KV_CACHE,
    MemoryKind.ACTIVATIONS,
    MemoryKind.IO,
    MemoryKind.WORKSPACE,
)


class DoesNotFit(StartupError):
    """A model that a device cannot hold as asked.

    ``kind`` is the component that broke the budget and ``nbytes`` what it takes or needs; ``over``
    is what is missing in all, in bytes. ``kv_needed_bytes`` is what the KV cache would have to be
    given, 0 where it is not the cache that lacks; ``kv_fitting_bytes`` what it could be given at
    most where more was asked, else 0; ``config`` what was planned for, with a cache of one block.
    """

    def __init__(
        self,
        message: str,
        *,
        kind: MemoryKind,
        nbytes: int,
        over: int,
        config: EngineConfig,
        kv_needed_bytes: int = 0,
        kv_fitting_bytes: int = 0,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.nbytes = nbytes
        self.over = over
        self.config = config
        self.kv_needed_bytes = kv_needed_bytes
        self.kv_fitting_bytes = kv_fitting_bytes


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """The sizes to build with, and the bytes that each kind will take."""

    layout: Layout
    kv: KVCacheSpec
    available_bytes: int
    pool_limit: str  # which bound, or the operator, set the pool's size
    model_max_len: int  # what the model itself can take

    @property
    def config(self) -> EngineConfig:
        return self.layout.config

    @property
    def max_model_len(self) -> int:
        return self.config.scheduler.max_model_len

    @property
    def capacity_tokens(self) -> int:
        """Tokens that the pool holds; with windows, in sequences of max_model_len tokens."""
        if len(self.kv.groups) == 1 and self.kv.groups[0].window is None:
            return self.kv.num_blocks * self.config.cache.block_size
        return int(self.concurrent_sequences * self.max_model_len)

    @property
    def concurrent_sequences(self) -> float:
        """Sequences of max_model_len tokens that the pool holds at once."""
        return self.held_at_once(self.max_model_len)

    def held_at_once(self, length: int) -> float:
        """Sequences of ``length`` tokens that the pool holds, beside what a step's chunk of one of
        them needs."""
        return self.kv.sequences_at_once(length, self.config.scheduler.max_num_batched_tokens)

    @property
    def kinds(self) -> dict[str, int]:
        """Planned bytes of the kinds that a plan can know."""
        return planned_bytes(self.layout)


def planned_bytes(layout: Layout) -> dict[str, int]:
    """By the kinds that a plan can know."""
    backend = backend_named(layout.config.model.backend)
    return {str(kind): layout.bytes(kind) for kind in planned_kinds(backend)}


def planned_kinds(backend: Backend) -> tuple[MemoryKind, ...]:
    """The kinds that a plan for that backend can know."""
    return (*_PLANNED, MemoryKind.GRAPHS) if backend.captures_graphs else _PLANNED
