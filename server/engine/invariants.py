"""Invariants: everything that must agree after every step, checked in one place.

Walks every table, so it is for tests and for the strict mode, not for serving.
"""

from __future__ import annotations

from collections import Counter

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


def _check_blocks(state: SchedulerState) -> None:
    """Blank, cached and held blocks are disjoint and add up; references are the holders."""
    pool, kv = state.kv.pool, state.kv
    holders = Counter(
        block for sequence in state.running for table in sequence.block_tables for block in table
    )
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
    """A running sequence's tables are as long as its tokens need; no other has any."""
    for request in state.requests.values():
        for sequence in request.sequences:
            tokens = max(sequence.num_computed_tokens, sequence.num_reserved_tokens)
            for size, table in zip(state.kv.block_sizes, sequence.block_tables, strict=True):
                is_running = sequence.state is SequenceState.RUNNING
                wanted = ceil_div(tokens, size) if is_running else 0
                if len(table) != wanted:
                    raise InvariantError(f"{sequence!r}: {len(table)} blocks, not {wanted}")
                if len(set(table)) != len(table):
                    raise InvariantError(f"{sequence!r} has a block twice: {table}")
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


def _check_request_blocks(state: SchedulerState) -> None:
    """A request holds what its choices' tables name."""
    for request in state.requests.values():
        tables = (table for sequence in request.sequences for table in sequence.block_tables)
        named = Counter(block for table in tables for block in table)
        if named != request.blocks.counts:
            raise InvariantError(
                f"{request.id} holds {request.blocks.counts}, its tables name {dict(named)}"
            )


def _check_writable(state: SchedulerState) -> None:
    """What a sequence may still write is its alone and not a cached prefix; sharing is of equals.

    Blocks from ``num_committed_tokens`` on may be written by a step in flight or to come.
    """
    kv = state.kv
    readers: dict[int, tuple[object, ...]] = {}
    for sequence in state.running:
        tables = zip(kv.block_sizes, sequence.block_tables, strict=True)
        for group, (size, table) in enumerate(tables):
            for index, block in enumerate(table):
                if (index + 1) * size > sequence.num_committed_tokens:
                    if kv.pool.num_references(block) != 1 or kv.cache.holds(block):
                        raise InvariantError(
                            f"{sequence!r} may write block {block}: "
                            f"{kv.pool.num_references(block)} references, "
                            f"cached: {kv.cache.holds(block)}"
                        )
                    continue
                prefix = tuple(sequence.token_ids[: (index + 1) * size])
                content = (sequence.request.namespaces[group], prefix)
                if readers.setdefault(block, content) != content:
                    raise InvariantError(
                        f"block {block} is shared by different prefixes: "
                        f"{readers[block]}, {content}"
                    )


def _check_cache(state: SchedulerState) -> None:
    """Entries and blocks point at each other; an entry's parents are there, up to the root."""
    cache = state.kv.cache
    entries = {id(entry) for entry in cache.entries}
    for entry in cache.entries:
        if not entry.block_ids:
            raise InvariantError(f"the entry of {entry.token_ids} has no block")
        for block in entry.block_ids:
            if cache.entry_of(block) is not entry:
                raise InvariantError(f"block {block} points at another entry")
        if entry.parent is not None and id(entry.parent) not in entries:
            raise InvariantError(f"the entry of {entry.token_ids} outlived its parent")
    for sequence in state.running:
        _check_cached_content(state, sequence)


def _check_cached_content(state: SchedulerState, sequence: Sequence) -> None:
    """A cached block of a running sequence is known under the tokens that it holds."""
    kv = state.kv
    tables = zip(kv.block_sizes, sequence.block_tables, strict=True)
    for group, (size, table) in enumerate(tables):
        for index, block in enumerate(table):
            entry = kv.cache.entry_of(block)
            if entry is None:
                continue
            tokens = tuple(sequence.token_ids[index * size : (index + 1) * size])
            namespace = sequence.request.namespaces[group]
            if entry.token_ids != tokens or entry.namespace != namespace:
                raise InvariantError(
                    f"block {block} holds {tokens} and is cached as {entry.token_ids}"
                )
            parent = kv.cache.entry_of(table[index - 1]) if index else None
            if entry.parent is not parent:
                raise InvariantError(f"block {block} is cached after another prefix")


def _check_pending(state: SchedulerState) -> None:
    """A sequence waits for as many tokens as steps in flight choose for its present life."""
    expected = Counter(
        row.sequence
        for rows in state.in_flight.values()
        for row in rows
        if row.is_current and row.chunk.samples
    )
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
