"""KVCacheManager: which blocks each sequence's tables hold, over every group of the KV cache.

    table      [ freed: NULL_BLOCK ][ shared, full ][ own block being written ][ reserved ahead ]
    tokens     0 ....... behind the window ............ num_computed_tokens ... num_reserved_tokens

Every change of a table is made here, and is all or nothing: where blocks are lacking, False or None
comes back and nothing has changed. A table has ceil(tokens / block_size) entries.

Windows. A step in flight starts where completed steps ended, so nothing reads what the token at
``num_committed_tokens`` does not see: a window group frees those blocks once a step is done, and
their entries become NULL_BLOCK, which no attention reads. So at any time a sequence holds at most
``KVCacheGroup.blocks_of(tokens, chunk)`` blocks of a group, ``chunk`` being the tokens that steps
in flight compute of it; between steps ``blocks_of(tokens)``. Everything that asks whether blocks
are enough (admission, the planner) takes the chunk of a whole step, so a long prompt needs the
window and a chunk and never its whole context.

A sequence with reserved tokens takes these blocks once. Each block that leaves its window becomes
the one ahead of it, which only works while nobody shares it: such a sequence takes no prefix of a
window group, offers none, and is not forked there.
"""

from __future__ import annotations

import bisect
import time
from collections import Counter
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Ids
from dataclasses import dataclass

from server.engine.block_pool import BlockPool
from server.engine.kv_spec import NULL_BLOCK, GroupKind, KVCacheGroup, KVCacheSpec
from server.engine.prefix_cache import CacheEntry, Digest, PrefixCache, sha256_digest
from server.engine.prefix_hit import BlockIds, PrefixHit, longest_hit
from server.engine.sequence import Sequence
from server.units import ceil_div

_SERVED = (GroupKind.FULL, GroupKind.WINDOW)


@dataclass(frozen=True, slots=True)
class DeferredRelease:
    """Blocks that step ``step_id`` may still write; released when it is done."""

    step_id: int
    block_ids: tuple[int, ...]


class KVCacheManager:
    """
    Args:
        max_chunk: tokens that one step computes at most.

    Raises:
        ValueError: a group's kind is not served.
    """

    def __init__(
        self,
        spec: KVCacheSpec,
        *,
        max_chunk: int,
        prefix_caching: bool,
        digest: Digest = sha256_digest,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        for group in spec.groups:
            if group.kind not in _SERVED:
                raise ValueError(f"KV cache groups of kind {group.kind} are not served")
        self.groups = spec.groups
        self.block_size = spec.block_size
        self._spec = spec
        self._max_chunk = max_chunk
        self._windows = [i for i, group in enumerate(spec.groups) if group.window is not None]
        self._prefix_caching = prefix_caching
        # An entry a block, as without windows: what windows let it know beyond that makes room.
        self.cache = PrefixCache(digest, num_groups=len(spec.groups), max_entries=spec.num_blocks)
        self.pool = BlockPool(spec.num_blocks, self.cache, clock)
        self.block_bytes = spec.page_bytes
        self._deferred: list[DeferredRelease] = []

    @property
    def num_groups(self) -> int:
        return len(self.groups)

    @property
    def has_windows(self) -> bool:
        return bool(self._windows)

    @property
    def no_prefix(self) -> PrefixHit:
        return longest_hit((), self.groups)

    @property
    def deferred(self) -> tuple[DeferredRelease, ...]:
        return tuple(self._deferred)

    # -- how many blocks ---------------------------------------------------------------------

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that one sequence needs to reach ``num_tokens`` tokens, in all groups."""
        return self._spec.blocks_of(num_tokens, self._max_chunk)

    def max_tokens_alone(self) -> int:
        """The most tokens that one sequence can store when it has the pool for itself: at most as
        many as the pool has slots, though behind windows alone there may be more."""
        lengths = range(self.pool.num_blocks * self.block_size + 1)
        return bisect.bisect_right(lengths, self.pool.num_blocks, key=self.blocks_for) - 1

    def table_length(self, group: KVCacheGroup, num_freed: int, num_tokens: int) -> int:
        """Entries of a table on the way to ``num_tokens`` tokens, as far as it reaches before more
        than ``num_freed`` of them are behind the window."""
        ahead = num_freed + group.blocks_of(num_tokens, self._max_chunk)
        return min(ceil_div(num_tokens, self.block_size), ahead)

    def blocks_missing(self, sequence: Sequence, num_tokens: int) -> int:
        """Blocks that the sequence lacks on its way to ``num_tokens`` tokens."""
        return sum(
            max(0, self.table_length(group, freed, num_tokens) - len(table))
            for group, table, freed in self._tables(sequence)
        )

    def will_have_blocks(
        self, sequence: Sequence, num_tokens: int, running: Iterable[Sequence]
    ) -> bool:
        """``extend`` will succeed when the steps in flight are done, if none is taken meanwhile."""
        if self._recycles(sequence):
            return True
        coming = len(self.reserved_block_ids()) + self._leaving_windows(running)
        return sum(self._lacking(sequence, num_tokens)) <= self.pool.num_available + coming

    def can_hold(self, hit: PrefixHit, num_tokens: int, spare: int = 0) -> bool:
        """A sequence that starts with ``hit`` can reach ``num_tokens`` tokens, and ``spare`` blocks
        stay available."""
        needed = sum(
            self.table_length(group, group.first_block(hit.num_tokens), num_tokens) - len(ids)
            for group, ids in zip(self.groups, hit.block_ids, strict=True)
        )
        num_available = self.pool.num_available - self.pool.num_cached_among(hit.held_ids)
        return needed + spare <= num_available

    def _tables(self, sequence: Sequence) -> Iterable[tuple[KVCacheGroup, list[int], int]]:
        """Each group's table, and how many of its entries were freed."""
        return zip(self.groups, sequence.block_tables, sequence.num_freed_blocks, strict=True)

    def _lacking(self, sequence: Sequence, num_tokens: int) -> list[int]:
        """Entries that each table lacks to hold ``num_tokens`` tokens."""
        wanted = ceil_div(num_tokens, self.block_size)
        return [max(0, wanted - len(table)) for table in sequence.block_tables]

    @staticmethod
    def _is_private(sequence: Sequence, group: KVCacheGroup) -> bool:
        """The sequence is to use these blocks again."""
        return group.window is not None and sequence.num_reserved_tokens > 0

    def _recycles(self, sequence: Sequence) -> bool:
        """The sequence has its blocks of window groups for good."""
        return bool(self._windows) and sequence.num_reserved_tokens > 0

    def _leaving_windows(self, running: Iterable[Sequence]) -> int:
        """Blocks that come free because the steps in flight move windows on."""
        return sum(
            self.pool.num_references(block) == 1
            for sequence in running
            if sequence.num_committed_tokens < sequence.num_computed_tokens
            and not self._recycles(sequence)
            for group, table, freed in self._tables(sequence)
            for block in table[freed : group.first_block(sequence.num_computed_tokens)]
        )

    # -- prefixes ----------------------------------------------------------------------------

    def find_prefix(self, sequence: Sequence, max_tokens: int) -> PrefixHit:
        """The longest prefix of at most ``max_tokens`` tokens that every group serves."""
        if not self._prefix_caching:
            return self.no_prefix
        entries = self.cache.find(
            sequence.request.namespace, sequence.token_ids, self.block_size, max_tokens
        )
        return longest_hit(entries, self.groups)

    def commit(self, sequence: Sequence) -> None:
        """Offers the sequence's full blocks to the cache, once a completed step computed them."""
        if not self._prefix_caching:
            return
        num_full = sequence.num_committed_tokens // self.block_size
        for index in range(sequence.num_cached_blocks, num_full):
            sequence.prefix_entry = self._offer(sequence, index)
        if num_full > sequence.num_cached_blocks:
            sequence.num_cached_blocks = num_full
            self.pool.forget(self.cache.collect_dropped())

    def _offer(self, sequence: Sequence, index: int) -> CacheEntry | None:
        """None also where the block before it is not known: then what follows is not either."""
        if index and sequence.prefix_entry is None:
            return None
        size = self.block_size
        block_ids = [
            None if self._is_private(sequence, group) else table[index]
            for group, table, _ in self._tables(sequence)
        ]
        token_ids = sequence.token_ids[index * size : (index + 1) * size]
        return self.cache.insert(
            sequence.request.namespace, sequence.prefix_entry, token_ids, block_ids
        )

    # -- taking blocks -----------------------------------------------------------------------

    def admit(self, sequence: Sequence, hit: PrefixHit, num_tokens: int) -> bool:
        """Fills the sequence's empty tables: the hit's blocks, then new ones for the rest."""
        if not self.can_hold(hit, num_tokens):
            return False
        self._share_tables(sequence, hit)
        sequence.prefix_entry = hit.entry
        self._grow(
            sequence,
            [
                self.table_length(group, freed, num_tokens) - len(table)
                for group, table, freed in self._tables(sequence)
            ],
        )
        return True

    def can_extend(self, wanted: Iterable[tuple[Sequence, int]]) -> bool:
        """Whether ``extend`` will succeed for each of these, one after the other."""
        lacking = sum(
            sum(self._lacking(sequence, num_tokens))
            for sequence, num_tokens in wanted
            if not self._recycles(sequence)
        )
        return lacking <= self.pool.num_available

    def extend(self, sequence: Sequence, num_tokens: int) -> BlockIds | None:
        """Grows the tables to hold ``num_tokens`` tokens. Returns the new blocks, or None."""
        counts = self._lacking(sequence, num_tokens)
        if sum(counts) > (0 if self._recycles(sequence) else self.pool.num_available):
            return None
        return self._grow(sequence, counts)

    def _share_tables(self, sequence: Sequence, hit: PrefixHit) -> None:
        """Empty tables become the hit's."""
        self.pool.share(hit.held_ids)
        for index, block_ids in enumerate(hit.block_ids):
            first = self.groups[index].first_block(hit.num_tokens)
            sequence.block_tables[index].extend(block_ids[:first])
            sequence.num_freed_blocks[index] = first
            self._give(sequence, index, block_ids[first:])
        sequence.num_cached_blocks = hit.num_tokens // self.block_size

    def _grow(self, sequence: Sequence, counts: Iterable[int]) -> BlockIds:
        """So many new blocks for each table. Returns all that the executor was not told of."""
        untold: list[tuple[int, ...]] = []
        for group, count in enumerate(counts):
            table = sequence.block_tables[group]
            self._give(sequence, group, self.pool.allocate(count))
            untold.append(tuple(table[sequence.num_told_blocks[group] :]))
            sequence.num_told_blocks[group] = len(table)
        return tuple(untold)

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
        added. None where blocks are lacking, and where reserved ones would have to be shared.
        """
        if reserve and self._windows:
            return None
        num_full = num_tokens // self.block_size
        wanted = ceil_div(max(num_tokens, reserve), self.block_size)
        if (wanted - num_full) * len(self.groups) > self.pool.num_available:
            return None
        block_ids = tuple(
            (NULL_BLOCK,) * (first := group.first_block(num_tokens)) + tuple(table[first:num_full])
            for group, table, _ in self._tables(parent)
        )
        self._share_tables(child, PrefixHit(num_tokens, block_ids))
        child.prefix_entry = _ancestor(
            parent.prefix_entry, parent.num_cached_blocks - child.num_cached_blocks
        )
        self._grow(child, [wanted - num_full] * len(self.groups))
        return [
            (source[num_full], destination[num_full])
            for source, destination in zip(parent.block_tables, child.block_tables, strict=True)
            if num_tokens % self.block_size
        ]

    # -- letting go of blocks ----------------------------------------------------------------

    def free_behind_window(self, sequence: Sequence) -> None:
        """Once completed steps have moved the windows on: what the next token does not see is let
        go of at once, since no step in flight reads or writes it. It stays cached where it was
        offered. Reserved blocks become those ahead."""
        for index in self._windows:
            group, table = self.groups[index], sequence.block_tables[index]
            first = sequence.num_freed_blocks[index]
            end = min(len(table), group.first_block(sequence.num_committed_tokens))
            if end <= first:
                continue
            block_ids = table[first:end]
            table[first:end] = [NULL_BLOCK] * len(block_ids)
            sequence.num_freed_blocks[index] = end
            if sequence.num_reserved_tokens:
                length = self.table_length(group, end, sequence.num_reserved_tokens)
                count = length - len(table)
                table.extend(block_ids[:count])
                del block_ids[:count]
            self._let_go(sequence, block_ids)
            self.pool.release(block_ids)

    def release(self, sequence: Sequence, step_in_flight: int | None) -> None:
        """Empties the tables, last tokens first, so that a prefix outlives what follows it.

        A prefix is found only where every group has it, so the groups' blocks take turns by their
        place in the sequence: what is evicted early is the end of the prefix in each of them. The
        blocks stay reserved until ``step_in_flight``, which may write them, is done.
        """
        places = [
            (index, group, block)
            for group, table in enumerate(sequence.block_tables)
            for index, block in enumerate(table)
            if block != NULL_BLOCK
        ]
        block_ids = [block for *_, block in sorted(places, reverse=True)]
        self._let_go(sequence, block_ids)
        if step_in_flight is None:
            self.pool.release(block_ids)
        elif block_ids:
            self._deferred.append(DeferredRelease(step_in_flight, tuple(block_ids)))
        sequence.clear_tables()

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
        """Allocated slots without a token. Only a table's own blocks have any: shared are full, and
        so is what was freed behind a window."""
        return sum(
            len(table) * self.block_size - sequence.num_computed_tokens
            for sequence in sequences
            for table in sequence.block_tables
        )

    def reset_cache(self) -> None:
        """Forgets every cached prefix. Blocks that sequences hold stay theirs."""
        self.pool.drop_cached()
        self.cache.clear()


def _ancestor(entry: CacheEntry | None, generations: int) -> CacheEntry | None:
    for _ in range(generations):
        entry = None if entry is None else entry.parent
    return entry
