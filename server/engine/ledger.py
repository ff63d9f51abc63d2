"""The ledger: everything that must agree after every step, checked in one place.

Walks every table, so it is for tests and for the strict mode, not for serving.
"""

from __future__ import annotations

from collections import Counter

from server.engine.roster import Roster
from server.engine.sequence import Sequence, SequenceState


class LedgerError(Exception):
    """The books do not balance. The message has the numbers."""


def check_ledger(roster: Roster) -> None:
    """
    Raises:
        LedgerError: a property does not hold.
    """
    _check_blocks(roster)
    _check_tables(roster)
    _check_holdings(roster)
    _check_writable(roster)
    _check_cache(roster)
    _check_pending(roster)
    _check_places(roster)
    _check_rows(roster)


def _check_blocks(roster: Roster) -> None:
    """Blank, idle and held blocks are disjoint and add up; references are the holders."""
    pool, kv = roster.kv.pool, roster.kv
    holders = Counter(
        block for sequence in roster.running for table in sequence.block_tables for block in table
    )
    holders.update(block for deferred in kv.deferred for block in deferred.block_ids)
    sets = {"blank": pool.blank_ids, "idle": pool.idle_ids, "held": tuple(holders)}
    counted = Counter(block for ids in sets.values() for block in ids)
    sizes = {name: len(ids) for name, ids in sets.items()}
    if sorted(counted.elements()) != list(range(pool.num_blocks)):
        raise LedgerError(f"blocks {sizes} do not add up to {pool.num_blocks}, each once: {sets}")
    for block in range(pool.num_blocks):
        references = pool.num_references(block)
        if references != holders[block]:
            raise LedgerError(
                f"block {block} has {references} references and {holders[block]} holders"
            )
    if not all(kv.cache.holds(block) for block in pool.idle_ids):
        raise LedgerError(f"an idle block of {pool.idle_ids} has no content")
    if any(kv.cache.holds(block) for block in pool.blank_ids):
        raise LedgerError(f"a blank block of {pool.blank_ids} has content")


def _check_tables(roster: Roster) -> None:
    """A running sequence's tables are as long as its tokens need; no other has any."""
    for request in roster.requests.values():
        for sequence in request.sequences:
            tokens = max(sequence.num_computed_tokens, sequence.num_reserved_tokens)
            for size, table in zip(roster.kv.block_sizes, sequence.block_tables, strict=True):
                is_running = sequence.state is SequenceState.RUNNING
                wanted = -(-tokens // size) if is_running else 0
                if len(table) != wanted:
                    raise LedgerError(f"{sequence!r}: {len(table)} blocks, not {wanted}")
                if len(set(table)) != len(table):
                    raise LedgerError(f"{sequence!r} has a block twice: {table}")
            if (
                not sequence.num_confirmed_tokens
                <= sequence.num_computed_tokens
                <= sequence.num_foreseen_tokens
            ):
                raise LedgerError(
                    f"{sequence!r}: {sequence.num_confirmed_tokens} confirmed, "
                    f"{sequence.num_computed_tokens} computed, {sequence.num_tokens} known and "
                    f"{sequence.num_pending_tokens} pending tokens"
                )


def _check_holdings(roster: Roster) -> None:
    """A request holds what its choices' tables name."""
    for request in roster.requests.values():
        tables = (table for sequence in request.sequences for table in sequence.block_tables)
        named = Counter(block for table in tables for block in table)
        if named != request.holdings.counts:
            raise LedgerError(
                f"{request.id} holds {request.holdings.counts}, its tables name {dict(named)}"
            )


def _check_writable(roster: Roster) -> None:
    """What a sequence may still write is its alone, and is no cached prefix; sharing is of equals.

    Blocks from ``num_confirmed_tokens`` on may be written by a step in flight or to come.
    """
    kv = roster.kv
    readers: dict[int, tuple[object, ...]] = {}
    for sequence in roster.running:
        tables = zip(kv.block_sizes, sequence.block_tables, strict=True)
        for group, (size, table) in enumerate(tables):
            for index, block in enumerate(table):
                if (index + 1) * size > sequence.num_confirmed_tokens:
                    if kv.pool.num_references(block) != 1 or kv.cache.holds(block):
                        raise LedgerError(
                            f"{sequence!r} may write block {block}: "
                            f"{kv.pool.num_references(block)} references, "
                            f"cached: {kv.cache.holds(block)}"
                        )
                    continue
                prefix = tuple(sequence.token_ids[: (index + 1) * size])
                content = (sequence.request.namespaces[group], prefix)
                if readers.setdefault(block, content) != content:
                    raise LedgerError(
                        f"block {block} is shared by different prefixes: "
                        f"{readers[block]}, {content}"
                    )


def _check_cache(roster: Roster) -> None:
    """Entries and blocks point at each other; an entry's parents are there, up to the root."""
    cache = roster.kv.cache
    entries = {id(entry) for entry in cache.entries}
    for entry in cache.entries:
        if not entry.block_ids:
            raise LedgerError(f"the entry of {entry.token_ids} has no block")
        for block in entry.block_ids:
            if cache.entry_of(block) is not entry:
                raise LedgerError(f"block {block} points at another entry")
        if entry.parent is not None and id(entry.parent) not in entries:
            raise LedgerError(f"the entry of {entry.token_ids} outlived its parent")
    for sequence in roster.running:
        _check_cached_content(roster, sequence)


def _check_cached_content(roster: Roster, sequence: Sequence) -> None:
    """A cached block of a running sequence is known under the tokens that it holds."""
    kv = roster.kv
    tables = zip(kv.block_sizes, sequence.block_tables, strict=True)
    for group, (size, table) in enumerate(tables):
        for index, block in enumerate(table):
            entry = kv.cache.entry_of(block)
            if entry is None:
                continue
            tokens = tuple(sequence.token_ids[index * size : (index + 1) * size])
            namespace = sequence.request.namespaces[group]
            if entry.token_ids != tokens or entry.namespace != namespace:
                raise LedgerError(
                    f"block {block} holds {tokens} and is cached as {entry.token_ids}"
                )
            parent = kv.cache.entry_of(table[index - 1]) if index else None
            if entry.parent is not parent:
                raise LedgerError(f"block {block} is cached after another prefix")


def _check_pending(roster: Roster) -> None:
    """A sequence waits for as many tokens as steps in flight choose for its present life."""
    expected = Counter(
        row.sequence
        for rows in roster.in_flight.values()
        for row in rows
        if row.is_current and row.chunk.samples
    )
    for request in roster.requests.values():
        for sequence in request.live_sequences:
            if sequence.num_pending_tokens != expected[sequence]:
                raise LedgerError(
                    f"{sequence!r}: {sequence.num_pending_tokens} tokens pending, "
                    f"{expected[sequence]} in the steps in flight"
                )


def _check_places(roster: Roster) -> None:
    """Every sequence of every live request is in exactly the place that its state names."""
    ranks = [sequence.rank for sequence in roster.running]
    if ranks != sorted(set(ranks)):
        raise LedgerError(f"running is not in the order of rank: {ranks}")
    queued = set(roster.waiting)
    running = set(roster.running)
    expected_queue, expected_running = set(), set()
    for request in roster.requests.values():
        if not request.live_sequences:
            raise LedgerError(f"{request.id} has ended and is still known")
        for sequence in request.live_sequences:
            is_behind = not request.is_forked and sequence is not request.primary
            if sequence.state is SequenceState.RUNNING:
                expected_running.add(sequence)
            elif sequence.state is SequenceState.RESERVED:
                if not is_behind:
                    raise LedgerError(f"{sequence!r} holds a row of no gang")
            elif not is_behind:
                expected_queue.add(sequence)
    if running != expected_running:
        raise LedgerError(f"running {running}, not {expected_running}")
    if queued != expected_queue:
        raise LedgerError(f"waiting {queued}, not {expected_queue}")
    tokens = sum(sequence.num_tokens for sequence in queued)
    if tokens != roster.waiting.num_tokens:
        raise LedgerError(f"{roster.waiting.num_tokens} tokens wait by count, {tokens} in fact")


def _check_rows(roster: Roster) -> None:
    """Every row is free or has one sequence, which runs or is reserved."""
    rows = list(roster.rows.free_rows)
    for request in roster.requests.values():
        for sequence in request.sequences:
            has_row = sequence.state in (SequenceState.RUNNING, SequenceState.RESERVED)
            if has_row != (sequence.row is not None):
                raise LedgerError(f"{sequence!r} has row {sequence.row}")
            if sequence.row is not None:
                rows.append(sequence.row)
    if sorted(rows) != list(range(roster.rows.num_rows)):
        raise LedgerError(
            f"rows free or held {sorted(rows)}, not 0..{roster.rows.num_rows - 1} each once"
        )
