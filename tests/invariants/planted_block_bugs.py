"""Mistakes with blocks, to plant in the engine: who holds one, and who may write it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from server.engine.block_pool import BlockPool, OutOfBlocks
from server.engine.kv_cache_manager import KVCacheManager
from server.engine.scheduler_state import SchedulerState
from server.engine.sequence import Sequence as LiveSequence

Patch = pytest.MonkeyPatch


def skip_a_reference(patch: Patch) -> None:
    """A shared block gets no reference for its last new holder."""
    share = BlockPool.share
    patch.setattr(BlockPool, "share", lambda pool, ids: share(pool, list(ids)[:-1]))


def evict_a_referenced_block(patch: Patch) -> None:
    """Where no blank block is left, the lowest cached block is taken, held or not."""
    take_one = BlockPool._take_one

    def take_any(pool: BlockPool) -> int:
        held = [b for b in range(pool.num_blocks) if pool._references[b]]
        cached = [b for b in held if pool._contents.holds(b)]
        if pool._free or not cached:
            return take_one(pool)
        pool._contents.evict(cached[0])
        return cached[0]

    patch.setattr(BlockPool, "_take_one", take_any)


def evict_the_most_recent_block(patch: Patch) -> None:
    """What was used last is forgotten first."""

    def take_last(pool: BlockPool) -> int:
        if pool._free:
            return pool._free.popleft()
        block_id, _ = pool._cached.popitem()
        pool._contents.evict(block_id)
        return block_id

    patch.setattr(BlockPool, "_take_one", take_last)


def allocate_in_part(patch: Patch) -> None:
    """An allocation that fails keeps what it had found so far."""
    allocate = BlockPool.allocate

    def greedy(pool: BlockPool, count: int) -> list[int]:
        available = pool.num_available
        if count > available:
            allocate(pool, available)
            raise OutOfBlocks(f"{count} blocks wanted, {available} available")
        return allocate(pool, count)

    patch.setattr(BlockPool, "allocate", greedy)


def free_without_looking(patch: Patch) -> None:
    """A second free of the same block goes through."""

    def release(pool: BlockPool, block_ids: Sequence[int]) -> None:
        for block_id in block_ids:
            pool._references[block_id] = max(0, pool._references[block_id] - 1)
            if not pool._references[block_id]:
                pool._retire(block_id)

    patch.setattr(BlockPool, "release", release)


def free_while_in_flight(patch: Patch) -> None:
    """The blocks of an ended request are free although a step in flight still writes them."""
    patch.setattr(SchedulerState, "step_in_flight", lambda state, sequence: None)


def leak_what_is_released(patch: Patch) -> None:
    """A sequence that leaves its row takes its last block with it."""
    release = KVCacheManager.release

    def leak(kv: KVCacheManager, sequence: LiveSequence, step_in_flight: int | None) -> None:
        for table in sequence.block_tables:
            del table[1:]
        release(kv, sequence, step_in_flight)

    patch.setattr(KVCacheManager, "release", leak)


def share_a_block_that_is_not_full(patch: Patch) -> None:
    """A forked choice writes into the block that its parent is writing."""
    fork = KVCacheManager.fork

    def share_all(kv: KVCacheManager, parent: LiveSequence, child: LiveSequence, *rest: int) -> Any:
        pairs = fork(kv, parent, child, *rest)
        for source, destination in pairs or []:
            for table in child.block_tables:
                if destination in table:
                    kv.pool.release([destination])
                    kv.pool.share([source])
                    table[table.index(destination)] = source
                    child.request.blocks.let_go([destination], 0.0)
                    child.request.blocks.take([source], 0.0)
        return pairs if pairs is None else []

    patch.setattr(KVCacheManager, "fork", share_all)


def no_block_copy_on_fork(patch: Patch) -> None:
    """A forked choice gets a block of its own, and nobody copies what belongs into it."""
    patch.setattr(
        SchedulerState, "collect_copies", lambda state, step_id: state.copies.clear() or ()
    )
