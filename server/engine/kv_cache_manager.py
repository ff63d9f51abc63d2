"""KVCacheManager: which blocks each sequence's tables hold, over every group of the KV cache.

    table      [ shared, full, never written again ][ own block being written ][ reserved ahead ]
    tokens     0 ............................ num_computed_tokens ............. num_reserved_tokens

Every change of a table is made here, and is all or nothing: where blocks are lacking, False or None
comes back and nothing has changed. A table has ceil(tokens / block_size) blocks.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Ids
from dataclasses import dataclass

from server.engine.block_pool import BlockPool
from server.engine.kv_spec import GroupKind, KVCacheSpec
from server.engine.prefix_cache import Digest, PrefixCache, sha256_digest
from server.engine.sequence import Sequence

# A window's blocks are kept to the end of their sequence.
_SERVED = (GroupKind.FULL, GroupKind.WINDOW)
BlockIds = tuple[tuple[int, ...], ...]  # one tuple a group


@dataclass(frozen=True, slots=True)
class PrefixHit:
    """A cached prefix that every group can serve."""

    num_tokens: int
    block_ids: BlockIds


@dataclass(frozen=True, slots=True)
class DeferredRelease:
    """Blocks that step ``step_id`` may still write; released when it is done."""

    step_id: int
    block_ids: tuple[int, ...]


class KVCacheManager:
    """
    Raises:
        ValueError: a group's kind is not served.
    """

    def __init__(
        self,
        spec: KVCacheSpec,
        *,
        prefix_caching: bool,
        digest: Digest = sha256_digest,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        for group in spec.groups:
            if group.kind not in _SERVED:
                raise ValueError(f"KV cache groups of kind {group.kind} are not served")
        self.block_sizes = tuple(group.block_size for group in spec.groups)
        self._alignment = math.lcm(*self.block_sizes)
        self._prefix_caching = prefix_caching
        self.cache = PrefixCache(digest)
        self.pool = BlockPool(spec.num_blocks, self.cache, clock)
        self.block_bytes = spec.page_bytes
        self._deferred: list[DeferredRelease] = []

    @property
    def num_groups(self) -> int:
        return len(self.block_sizes)

    @property
    def no_prefix(self) -> PrefixHit:
        return PrefixHit(0, tuple(() for _ in self.block_sizes))

    @property
    def deferred(self) -> tuple[DeferredRelease, ...]:
        return tuple(self._deferred)

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that ``num_tokens`` tokens of one sequence need, in all groups."""
        return sum(-(-num_tokens // size) for size in self.block_sizes)

    def max_tokens_alone(self) -> int:
        """The most tokens that one sequence can store when it has the pool for itself."""
        num_tokens = self.pool.num_blocks * max(self.block_sizes)
        while self.blocks_for(num_tokens) > self.pool.num_blocks:
            num_tokens -= 1
        return num_tokens

    def blocks_missing(self, sequence: Sequence, num_tokens: int) -> int:
        """Blocks that the sequence lacks to hold ``num_tokens`` tokens."""
        return sum(
            max(0, -(-num_tokens // size) - len(table))
            for size, table in zip(self.block_sizes, sequence.block_tables, strict=True)
        )

    def will_have_blocks(self, sequence: Sequence, num_tokens: int) -> bool:
        """``extend`` will succeed when the steps in flight are done, if none is taken meanwhile."""
        if not self._deferred:
            return False
        available = self.pool.num_available + len(self.reserved_block_ids())
        return self.blocks_missing(sequence, num_tokens) <= available

    def find_prefix(self, sequence: Sequence, max_tokens: int) -> PrefixHit:
        """The longest prefix of at most ``max_tokens`` tokens that every group has cached."""
        if not self._prefix_caching:
            return self.no_prefix
        found = [
            self.cache.find(namespace, sequence.token_ids, size, max_tokens)
            for namespace, size in zip(sequence.request.namespaces, self.block_sizes, strict=True)
        ]
        served = min(
            len(blocks) * size for blocks, size in zip(found, self.block_sizes, strict=True)
        )
        num_tokens = served - served % self._alignment
        return PrefixHit(
            num_tokens,
            tuple(
                tuple(blocks[: num_tokens // size])
                for blocks, size in zip(found, self.block_sizes, strict=True)
            ),
        )

    def can_hold(self, hit: PrefixHit, num_tokens: int, spare: int = 0) -> bool:
        """``num_tokens`` tokens after ``hit`` fit, and ``spare`` blocks stay available."""
        hit_ids = [block_id for blocks in hit.block_ids for block_id in blocks]
        needed = self.blocks_for(num_tokens) - len(hit_ids)
        return needed + spare <= self.pool.num_available - self.pool.num_cached_among(hit_ids)

    def admit(self, sequence: Sequence, hit: PrefixHit, num_tokens: int) -> bool:
        """Fills the sequence's empty tables: the hit's blocks, then new ones for the rest."""
        if not self.can_hold(hit, num_tokens):
            return False
        for group, block_ids in enumerate(hit.block_ids):
            self.pool.share(block_ids)
            self._give(sequence, group, block_ids)
            sequence.num_cached_blocks[group] = len(block_ids)
        self._grow(sequence, num_tokens)
        return True

    def extend(self, sequence: Sequence, num_tokens: int) -> BlockIds | None:
        """Grows the tables to hold ``num_tokens`` tokens. Returns the new blocks, or None."""
        if self.blocks_missing(sequence, num_tokens) > self.pool.num_available:
            return None
        return self._grow(sequence, num_tokens)

    def _grow(self, sequence: Sequence, num_tokens: int) -> BlockIds:
        new_ids: list[tuple[int, ...]] = []
        for group, size in enumerate(self.block_sizes):
            missing = -(-num_tokens // size) - len(sequence.block_tables[group])
            block_ids = self.pool.allocate(max(0, missing))
            self._give(sequence, group, block_ids)
            new_ids.append(tuple(block_ids))
        return tuple(new_ids)

    def _give(self, sequence: Sequence, group: int, block_ids: Ids[int]) -> None:
        """Blocks that were just allocated or shared, at the end of a table."""
        sequence.block_tables[group].extend(block_ids)
        sequence.request.blocks.take(block_ids, self.pool.time.given(block_ids))

    def _let_go(self, sequence: Sequence, block_ids: Ids[int]) -> None:
        """Before or after their release: what happens in the same moment changes no time."""
        self.pool.bring_up_to_now(block_ids)
        sequence.request.blocks.let_go(block_ids, self.pool.time.given(block_ids))

    def fork(
        self, parent: Sequence, child: Sequence, num_tokens: int, reserve: int = 0
    ) -> list[tuple[int, int]] | None:
        """Gives ``child`` the parent's first ``num_tokens`` computed tokens.

        Full blocks are shared; of a partial one, in each group, the child gets its own, and the
        pair (source, destination) to copy is returned. Blocks for ``reserve`` tokens in all are
        added. None where blocks are lacking.
        """
        shared = sum(num_tokens // size for size in self.block_sizes)
        wanted = max(num_tokens, reserve)
        if self.blocks_for(wanted) - shared > self.pool.num_available:
            return None
        for group, size in enumerate(self.block_sizes):
            full = parent.block_tables[group][: num_tokens // size]
            self.pool.share(full)
            self._give(child, group, full)
            child.num_cached_blocks[group] = len(full)
        self._grow(child, wanted)
        return [
            (source[num_tokens // size], destination[num_tokens // size])
            for size, source, destination in zip(
                self.block_sizes, parent.block_tables, child.block_tables, strict=True
            )
            if num_tokens % size
        ]

    def commit(self, sequence: Sequence) -> None:
        """Offers the sequence's full blocks to the cache, once a completed step computed them."""
        if not self._prefix_caching:
            return
        for group, size in enumerate(self.block_sizes):
            table = sequence.block_tables[group]
            namespace = sequence.request.namespaces[group]
            num_full = sequence.num_committed_tokens // size
            for index in range(sequence.num_cached_blocks[group], num_full):
                token_ids = sequence.token_ids[index * size : (index + 1) * size]
                parent = table[index - 1] if index else None
                self.cache.insert(namespace, parent, token_ids, table[index])
            sequence.num_cached_blocks[group] = num_full

    def release(self, sequence: Sequence, step_in_flight: int | None) -> None:
        """Empties the tables, last tokens first, so that a prefix outlives what follows it.

        A prefix is found only where every group has it, so the groups' blocks take turns by their
        place in the sequence: what is evicted early is the end of the prefix in each of them. The
        blocks stay reserved until ``step_in_flight``, which may write them, is done.
        """
        places = [
            (index * size, group, block)
            for group, (size, table) in enumerate(
                zip(self.block_sizes, sequence.block_tables, strict=True)
            )
            for index, block in enumerate(table)
        ]
        block_ids = [block for *_, block in sorted(places, reverse=True)]
        self._let_go(sequence, block_ids)
        if step_in_flight is None:
            self.pool.release(block_ids)
        elif block_ids:
            self._deferred.append(DeferredRelease(step_in_flight, tuple(block_ids)))
        for table in sequence.block_tables:
            table.clear()

    def step_done(self, step_id: int) -> None:
        """Releases what waited for the step and those before it."""
        waiting = []
        for deferred in self._deferred:
            if deferred.step_id <= step_id:
                self.pool.release(deferred.block_ids)
            else:
                waiting.append(deferred)
        self._deferred = waiting

    def reserved_block_ids(self) -> set[int]:
        """Blocks that only a step in flight still holds."""
        held = Counter(block for deferred in self._deferred for block in deferred.block_ids)
        return {block for block, n in held.items() if n == self.pool.num_references(block)}

    def empty_slots(self, sequences: Iterable[Sequence]) -> int:
        """Allocated slots without a token. Only a table's own blocks have any: shared are full."""
        slots = max(self.block_sizes)
        return sum(
            len(table) * slots - sequence.num_computed_tokens
            for sequence in sequences
            for table in sequence.block_tables
        )

    def reset_cache(self) -> None:
        """Forgets every cached prefix. Blocks that sequences hold stay theirs."""
        self.pool.drop_cached()
        self.cache.clear()
