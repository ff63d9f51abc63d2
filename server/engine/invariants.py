"""Invariants: everything that must agree after every step, checked in one place.

Walks every table, so it is for tests and for the strict mode, not for serving.
"""

from __future__ import annotations

from collections import Counter

from server.engine.kv_spec import NULL_BLOCK, KVCacheGroup
from server.engine.prefix_cache import CacheEntry
from server.engine.scheduler_state import SchedulerState
from server.engine.sequence import Sequence, SequenceState
from server.units import ceil_div


class InvariantError(Exception):
    """An invariant does not hold. The message has the numbers."""


def check_invariants(state: SchedulerState) -> None:
    """
    Raises:
        InvariantError: a property does not hold.
    """
    _check_blocks(state)
    _check_tables(state)
    _check_request_blocks(state)
    _check_writable(state)
    _check_cache(state)
    _check_pending(state)
    _check_places(state)
    _check_rows(state)


def _held_blocks(sequence: Sequence) -> list[int]:
    return [block for table in sequence.block_tables for block in table if block != NULL_BLOCK]


def _check_blocks(state: SchedulerState) -> None:
    """Blank, cached and held blocks are disjoint and add up; references are the holders."""
    pool, kv = state.kv.pool, state.kv
    holders = Counter(block for sequence in state.running for block in _held_blocks(sequence))
    holders.update(block for deferred in kv.deferred for block in deferred.block_ids)
    sets = {"free": pool.free_ids, "cached": pool.cached_ids, "held": tuple(holders)}
    counted = Counter(block for ids in sets.values() for block in ids)
    sizes = {name: len(ids) for name, ids in sets.items()}
    if sorted(counted.elements()) != list(range(pool.num_blocks)):
        raise InvariantError(
            f"blocks {sizes} do not add up to {pool.num_blocks}, each once: {sets}"
        )
    for block in range(pool.num_blocks):
        references = pool.num_references(block)
        if references != holders[block]:
            raise InvariantError(
                f"block {block} has {references} references and {holders[block]} holders"
            )
    if not all(kv.cache.holds(block) for block in pool.cached_ids):
        raise InvariantError(f"a cached block of {pool.cached_ids} has no content")
    if any(kv.cache.holds(block) for block in pool.free_ids):
        raise InvariantError(f"a free block of {pool.free_ids} has content")


def _check_tables(state: SchedulerState) -> None:
    """A running sequence's tables are as long as its tokens need, and free of what is behind the
    windows; no other has any."""
    for request in state.requests.values():
        for sequence in request.sequences:
            for index, group in enumerate(state.kv.groups):
                _check_table(state, sequence, index, group)
            if (
                not sequence.num_committed_tokens
                <= sequence.num_computed_tokens
                <= sequence.num_tokens_with_in_flight
            ):
                raise InvariantError(
                    f"{sequence!r}: {sequence.num_committed_tokens} confirmed, "
                    f"{sequence.num_computed_tokens} computed, {sequence.num_tokens} known and "
                    f"{sequence.num_in_flight_tokens} pending tokens"
                )


def _check_table(
    state: SchedulerState, sequence: Sequence, index: int, group: KVCacheGroup
) -> None:
    kv, table = state.kv, sequence.block_tables[index]
    is_running = sequence.state is SequenceState.RUNNING
    freed = group.first_block(sequence.num_committed_tokens) if is_running else 0
    wanted = ceil_div(sequence.num_computed_tokens, kv.block_size) if is_running else 0
    if is_running and sequence.num_reserved_tokens:
        wanted = max(wanted, kv.table_length(group, freed, sequence.num_reserved_tokens))
    if len(table) != wanted:
        raise InvariantError(f"{sequence!r}: {len(table)} blocks, not {wanted}")
    if [block == NULL_BLOCK for block in table] != [i < freed for i in range(wanted)]:
        raise InvariantError(f"{sequence!r}: {freed} blocks are behind the window of {table}")
    if sequence.num_freed_blocks[index] != freed:
        raise InvariantError(
            f"{sequence!r} counts {sequence.num_freed_blocks[index]} freed blocks, not {freed}"
        )
    held = table[freed:]
    if len(set(held)) != len(held):
        raise InvariantError(f"{sequence!r} has a block twice: {table}")
    under_way = max(1, sequence.num_computed_tokens - sequence.num_committed_tokens)
    bound = group.blocks_of(sequence.num_computed_tokens, under_way)
    if not sequence.num_reserved_tokens and len(held) > bound:
        raise InvariantError(f"{sequence!r} holds {len(held)} blocks of a group, above {bound}")
    if sequence.num_reserved_tokens and group.window is not None:
        shared = [b for b in held if kv.pool.num_references(b) > 1 or kv.cache.holds(b)]
        if shared:
            raise InvariantError(f"{sequence!r} shares {shared}, which it is to use again")


def _check_request_blocks(state: SchedulerState) -> None:
    """A request holds what its choices' tables name."""
    for request in state.requests.values():
        named = Counter(b for sequence in request.sequences for b in _held_blocks(sequence))
        if named != request.blocks.counts:
            raise InvariantError(
                f"{request.id} holds {request.blocks.counts}, its tables name {dict(named)}"
            )


def _check_writable(state: SchedulerState) -> None:
    """What a sequence may still write is its alone and not a cached prefix; sharing is of equals.

    Blocks from ``num_committed_tokens`` on may be written by a step in flight or to come.
    """
    kv, size = state.kv, state.kv.block_size
    readers: dict[int, tuple[object, ...]] = {}
    for sequence in state.running:
        for group, table in enumerate(sequence.block_tables):
            for index, block in enumerate(table):
                if block == NULL_BLOCK:
                    continue
                if (index + 1) * size > sequence.num_committed_tokens:
                    if kv.pool.num_references(block) != 1 or kv.cache.holds(block):
                        raise InvariantError(
                            f"{sequence!r} may write block {block}: "
                            f"{kv.pool.num_references(block)} references, "
                            f"cached: {kv.cache.holds(block)}"
                        )
                    continue
                prefix = tuple(sequence.token_ids[: (index + 1) * size])
                content = (sequence.request.namespace, group, prefix)
                if readers.setdefault(block, content) != content:
                    raise InvariantError(
                        f"block {block} is shared by different prefixes: "
                        f"{readers[block]}, {content}"
                    )


def _check_cache(state: SchedulerState) -> None:
    """Entries and blocks point at each other; an entry's parents are there, up to the root; none is
    kept for nothing, and there are no more than may be."""
    kv, cache = state.kv, state.kv.cache
    entries = {id(entry) for entry in cache.entries}
    children = Counter(id(entry.parent) for entry in cache.entries if entry.parent is not None)
    if len(entries) > kv.pool.num_blocks:
        raise InvariantError(f"{len(entries)} prefixes are known, {kv.pool.num_blocks} may be")
    for entry in cache.entries:
        if entry.num_children != children[id(entry)]:
            raise InvariantError(
                f"the entry of {entry.token_ids} counts {entry.num_children} children, "
                f"not {children[id(entry)]}"
            )
        if not entry.has_blocks and not entry.num_children:
            raise InvariantError(f"the entry of {entry.token_ids} has no block and no children")
        for block in (block for ids in entry.block_ids for block in ids):
            if cache.entry_of(block) is not entry:
                raise InvariantError(f"block {block} points at another entry")
        if entry.parent is not None and id(entry.parent) not in entries:
            raise InvariantError(f"the entry of {entry.token_ids} outlived its parent")
        _check_parents_blocks(state, entry)
    if {id(leaf) for leaf in cache.leaves} != entries - set(children):
        raise InvariantError("the leaves are not the entries without children")
    for sequence in state.running:
        _check_cached_content(state, sequence)


def _check_parents_blocks(state: SchedulerState, entry: CacheEntry) -> None:
    """In a full group a prefix is forgotten from its end: what is left serves a hit."""
    if entry.parent is None:
        return
    for index, group in enumerate(state.kv.groups):
        if group.window is None and entry.block_ids[index] and not entry.parent.block_ids[index]:
            raise InvariantError(f"in group {index}, {entry.token_ids} outlived what is before it")


def _check_cached_content(state: SchedulerState, sequence: Sequence) -> None:
    """A cached block of a running sequence is known under the tokens that it holds, and after those
    that are before it."""
    kv, size = state.kv, state.kv.block_size
    for group, table in enumerate(sequence.block_tables):
        for index, block in enumerate(table):
            entry = kv.cache.entry_of(block)
            if entry is None:
                continue
            tokens = tuple(sequence.token_ids[: (index + 1) * size])
            if block not in entry.block_ids[group] or entry.namespace != sequence.request.namespace:
                raise InvariantError(f"block {block} is cached for another group or namespace")
            if _prefix_of(entry) != tokens:
                raise InvariantError(
                    f"block {block} ends {tokens} and is cached as {_prefix_of(entry)}"
                )


def _prefix_of(entry: CacheEntry | None) -> tuple[int, ...]:
    parts: list[tuple[int, ...]] = []
    while entry is not None:
        parts.append(entry.token_ids)
        entry = entry.parent
    return tuple(token for part in reversed(parts) for token in part)


def _check_pending(state: SchedulerState) -> None:
    """A sequence waits for as many tokens as steps in flight choose for its present life."""
    expected: Counter[Sequence] = Counter()
    for rows in state.in_flight.values():
        for row in rows:
            if row.is_current:
                expected[row.sequence] += row.chunk.num_sampled
    for request in state.requests.values():
        for sequence in request.live_sequences:
            if sequence.num_in_flight_tokens != expected[sequence]:
                raise InvariantError(
                    f"{sequence!r}: {sequence.num_in_flight_tokens} tokens pending, "
                    f"{expected[sequence]} in the steps in flight"
                )


def _check_places(state: SchedulerState) -> None:
    """Every sequence of every live request is in exactly the place that its state names."""
    ranks = [sequence.priority_key for sequence in state.running]
    if ranks != sorted(set(ranks)):
        raise InvariantError(f"running is not in the order of priority: {ranks}")
    queued = set(state.waiting)
    running = set(state.running)
    expected_queue, expected_running = set(), set()
    for request in state.requests.values():
        if not request.live_sequences:
            raise InvariantError(f"{request.id} has ended and is still known")
        for sequence in request.live_sequences:
            is_behind = not request.is_forked and sequence is not request.primary
            if sequence.state is SequenceState.RUNNING:
                expected_running.add(sequence)
            elif sequence.state is SequenceState.FORK_PENDING:
                if not is_behind:
                    raise InvariantError(f"{sequence!r} has a row but no sequence group")
            elif not is_behind:
                expected_queue.add(sequence)
    if running != expected_running:
        raise InvariantError(f"running {running}, not {expected_running}")
    if queued != expected_queue:
        raise InvariantError(f"waiting {queued}, not {expected_queue}")
    tokens = sum(sequence.num_tokens for sequence in queued)
    if tokens != state.waiting.num_tokens:
        raise InvariantError(f"{state.waiting.num_tokens} tokens wait by count, {tokens} in fact")


def _check_rows(state: SchedulerState) -> None:
    """Every row is free or has one sequence, which runs or is reserved."""
    rows = list(state.rows.free_rows)
    for request in state.requests.values():
        for sequence in request.sequences:
            has_row = sequence.state in (SequenceState.RUNNING, SequenceState.FORK_PENDING)
            if has_row != (sequence.row is not None):
                raise InvariantError(f"{sequence!r} has row {sequence.row}")
            if sequence.row is not None:
                rows.append(sequence.row)
    if sorted(rows) != list(range(state.rows.num_rows)):
        raise InvariantError(
            f"rows free or held {sorted(rows)}, not 0..{state.rows.num_rows - 1} each once"
        )
