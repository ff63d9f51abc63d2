"""The block pool alone: references are counted, and nothing half done is left behind."""

from __future__ import annotations

import pytest

from server.engine.block_pool import BlockError, BlockPool, OutOfBlocks

AccountingSources = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


class Known:
    """Blocks with content, and those that were evicted, in order."""

    def __init__(self, *block_ids: int) -> None:
        self.block_ids = set(block_ids)
        self.evicted: list[int] = []

    def holds(self, block_id: int) -> bool:
        return block_id in self.block_ids

    def evict(self, block_id: int) -> None:
        self.block_ids.remove(block_id)
        self.evicted.append(block_id)


def books(pool: BlockPool) -> AccountingSources:
    references = tuple(pool.num_references(block) for block in range(pool.num_blocks))
    return pool.free_ids, pool.cached_ids, references


def test_free_blocks_are_handed_out_in_order_with_one_reference_each() -> None:
    pool = BlockPool(4, Known())
    assert pool.allocate(3) == [0, 1, 2]
    assert books(pool) == ((3,), (), (1, 1, 1, 0))
    assert (pool.num_allocated, pool.num_available) == (3, 1)


def test_too_many_blocks_are_not_handed_out_in_part() -> None:
    pool = BlockPool(4, Known(1))
    pool.release(pool.allocate(3))
    pool.allocate(2)
    before = books(pool)
    with pytest.raises(OutOfBlocks, match="3 blocks wanted, 2 available"):
        pool.allocate(3)
    assert books(pool) == before


def test_none_of_nothing_is_not_an_error() -> None:
    pool = BlockPool(1, Known())
    pool.allocate(1)
    assert pool.allocate(0) == []


def test_a_double_free_raises_and_changes_nothing() -> None:
    pool = BlockPool(3, Known())
    pool.allocate(2)
    pool.release([0])
    before = books(pool)
    with pytest.raises(BlockError, match="block 0 released 1 times, held 0 times"):
        pool.release([1, 0])
    assert books(pool) == before


def test_a_double_free_in_one_call_raises_and_changes_nothing() -> None:
    pool = BlockPool(3, Known())
    pool.allocate(2)
    before = books(pool)
    with pytest.raises(BlockError, match="block 1 released 2 times, held 1 times"):
        pool.release([0, 1, 1])
    assert books(pool) == before


@pytest.mark.parametrize("foreign", [-1, 3])
def test_a_block_of_no_pool_raises_and_changes_nothing(foreign: int) -> None:
    pool = BlockPool(3, Known())
    pool.allocate(2)
    before = books(pool)
    with pytest.raises(BlockError, match=f"block {foreign} is not one of this pool's 3"):
        pool.release([0, foreign])
    with pytest.raises(BlockError, match=f"block {foreign} is not one of this pool's 3"):
        pool.share([0, foreign])
    assert books(pool) == before


def test_a_free_block_cannot_be_shared_and_nothing_before_it_was() -> None:
    pool = BlockPool(3, Known())
    pool.allocate(2)
    before = books(pool)
    with pytest.raises(BlockError, match="block 2 is free and cannot be shared"):
        pool.share([0, 2])
    assert books(pool) == before


def test_a_shared_block_stays_held_until_its_last_reference_goes() -> None:
    pool = BlockPool(1, Known())
    pool.allocate(1)
    pool.share([0])
    pool.release([0])
    assert books(pool) == ((), (), (1,))
    pool.release([0])
    assert books(pool) == ((0,), (), (0,))


def test_a_block_with_content_is_kept_idle_and_one_without_is_free() -> None:
    pool = BlockPool(3, Known(1))
    pool.release(pool.allocate(3))
    assert books(pool) == ((0, 2), (1,), (0, 0, 0))


def test_the_least_recently_released_block_is_evicted_once_no_free_one_is_left() -> None:
    known = Known(0, 1, 2)
    pool = BlockPool(4, known)
    pool.allocate(4)
    for block in (2, 0, 3, 1):
        pool.release([block])
    assert pool.allocate(3) == [3, 2, 0]
    assert known.evicted == [2, 0]
    assert pool.cached_ids == (1,)


def test_a_hit_takes_an_idle_block_out_of_the_order_of_eviction() -> None:
    known = Known(0, 1)
    pool = BlockPool(2, known)
    pool.release(pool.allocate(2))
    pool.share([0])
    assert books(pool) == ((), (1,), (1, 0))
    assert pool.allocate(1) == [1]
    assert known.evicted == [1]
    pool.release([0])
    assert pool.cached_ids == (0,)


def test_a_reset_makes_idle_blocks_free_and_leaves_held_ones() -> None:
    pool = BlockPool(3, Known(0, 1, 2))
    pool.allocate(3)
    pool.release([1, 0])
    pool.drop_cached()
    assert books(pool) == ((1, 0), (), (0, 0, 1))
