"""What the prefix cache keeps for a block: there is one for every block of a full pool."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import pytest

from server.engine.prefix_cache import CacheEntry, Namespace, PrefixCache

BLOCK_SIZE, NUM_BLOCKS = 16, 500
NOWHERE = Namespace(salt="", adapter_id="", adapter_version=0)


@pytest.fixture
def traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


def test_a_block_of_sixteen_tokens_takes_half_a_kilobyte(traced: None) -> None:
    cache = PrefixCache(max_entries=NUM_BLOCKS)
    entry: CacheEntry | None = None
    before, _ = tracemalloc.get_traced_memory()
    for block in range(NUM_BLOCKS):
        token_ids = [10_000 + block * BLOCK_SIZE + i for i in range(BLOCK_SIZE)]
        entry = cache.insert(NOWHERE, entry, token_ids, [block])
        assert entry is not None
    del token_ids
    after, _ = tracemalloc.get_traced_memory()
    assert (after - before) / NUM_BLOCKS < 600
    found = cache.find(NOWHERE, range(10_000, 10_064), BLOCK_SIZE, 64)
    assert [entry.block_ids for entry in found] == [((block,),) for block in range(4)]
    (first,) = (entry for entry in cache.entries if entry.parent is None)
    assert first.token_ids == tuple(range(10_000, 10_016))
