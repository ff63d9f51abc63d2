"""SchedulerState: every live request, and where each of its sequences stands.

A sequence is in exactly one place: the waiting queue, the running list (with a row), or its
request's sequence group (FORK_PENDING with a row, or WAITING behind the first choice). Every move
from one place to another is made here, and takes the sequence's row and blocks along.
"""

from __future__ import annotations

import heapq
from bisect import insort
from collections.abc import Iterable

from server.engine.engine_config import SchedulerConfig
from server.engine.events import ChoiceOutput, OutputBuffer, RequestMemory
from server.engine.kv_cache_manager import KVCacheManager
from server.engine.queue import WaitingQueue
from server.engine.request import EngineError, FinishReason
from server.engine.sequence import Request, Sequence, SequenceState
from server.engine.step import ScheduledRow

# RowTable: which of the executor's rows are free, and which it must be told to release.


class RowTable:
    """The lowest free row is taken first, so that the rows in use stay dense."""

    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows
        self._free = list(range(num_rows))
        self._known: set[int] = set()  # rows that the executor holds state for
        self._to_release: dict[int, None] = {}

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def free_rows(self) -> tuple[int, ...]:
        return tuple(self._free)

    def is_known(self, row: int) -> bool:
        return row in self._known

    def take(self) -> int:
        return heapq.heappop(self._free)

    def mark_known(self, row: int) -> None:
        self._known.add(row)

    def give_back(self, row: int) -> None:
        """
        Raises:
            ValueError: the row is free already.
        """
        if row in self._free:
            raise ValueError(f"row {row} is given back twice")
        heapq.heappush(self._free, row)
        if row in self._known:
            self._known.remove(row)
            self._to_release[row] = None

    def release_again(self, rows: Iterable[int]) -> None:
        """After a step that raised it is unknown whether it released these."""
        self._to_release.update(dict.fromkeys(rows))

    def collect_released(self) -> tuple[int, ...]:
        """The rows to name in the next plan; named once."""
        rows = tuple(self._to_release)
        self._to_release.clear()
        return rows


BlockCopies = list[tuple[int, int]]


class SchedulerState:
    def __init__(self, kv: KVCacheManager, config: SchedulerConfig) -> None:
        self.kv = kv
        self.config = config
        self.requests: dict[str, Request] = {}
        self.waiting = WaitingQueue()
        self.running: list[Sequence] = []  # in priority order
        self.rows = RowTable(config.max_num_seqs)
        self.outputs = OutputBuffer()
        self.in_flight: dict[int, tuple[ScheduledRow, ...]] = {}
        self.copies: dict[Sequence, tuple[Sequence, BlockCopies]] = {}  # by child: parent, pairs
        self.quarantined: dict[str, Request] = {}  # were in the last step that failed
        self.num_preemptions = 0
        self.num_discarded_tokens = 0  # since they were last reported

    def add(self, request: Request) -> None:
        self.requests[request.id] = request
        self.waiting.push(request.primary)

    def rows_needed(self, sequence: Sequence) -> int:
        """A request's choices get their rows together: when its prompt is admitted."""
        request = sequence.request
        return 1 if request.is_forked else len(request.live_sequences)

    def start(self, sequence: Sequence, num_computed_tokens: int) -> None:
        """From the queue to a row, and its request's sequence group with it. Its tables are
        filled."""
        self.waiting.remove(sequence)
        sequence.row = self.rows.take()
        self._run(sequence, num_computed_tokens)
        request = sequence.request
        if not request.is_forked:
            for sibling in request.live_sequences:
                if sibling is not sequence:
                    sibling.move_to(SequenceState.FORK_PENDING)
                    sibling.row = self.rows.take()

    def _run(self, sequence: Sequence, num_computed_tokens: int) -> None:
        sequence.move_to(SequenceState.RUNNING)
        sequence.num_computed_tokens = num_computed_tokens
        sequence.num_committed_tokens = num_computed_tokens
        insort(self.running, sequence, key=lambda member: member.priority_key)

    def preempt(self, sequence: Sequence, *, counts: bool = True) -> None:
        """From its row back to the queue, to be recomputed."""
        self._leave_row(sequence)
        sequence.forget_computed()
        sequence.move_to(SequenceState.PREEMPTED)
        if counts:
            sequence.num_preemptions += 1
            self.num_preemptions += 1
        if not sequence.request.is_forked:
            self._dissolve_group(sequence.request)
        self.waiting.push(sequence)

    def fork(self, request: Request, *, reserve: bool) -> None:
        """The prompt is computed: each choice that waits for it runs from its last token on.

        That one token is recomputed, so that each choice draws its own first token. A choice for
        which blocks are lacking goes to the queue.
        """
        request.is_forked = True
        parent = request.primary
        num_tokens = parent.num_prompt_tokens - 1
        for child in request.sequences:
            if child.state is not SequenceState.FORK_PENDING:
                continue
            reserved = child.max_num_tokens if reserve else 0
            copies = self.kv.fork(parent, child, num_tokens, reserved)
            if copies is None:
                self._give_back_row(child)
                child.move_to(SequenceState.PREEMPTED)
                self.waiting.push(child)
                continue
            child.num_reserved_tokens = reserved
            self._run(child, num_tokens)
            if copies:
                self.copies[child] = (parent, copies)

    def collect_copies(self, step_id: int) -> tuple[tuple[int, int], ...]:
        """The copies that forks are waiting for; step ``step_id`` names them."""
        pairs: BlockCopies = []
        for child, (parent, child_pairs) in self.copies.items():
            child.last_step_id = step_id
            parent.last_step_id = step_id
            pairs.extend(child_pairs)
        self.copies.clear()
        return tuple(pairs)

    def end(self, sequence: Sequence, reason: FinishReason) -> None:
        """Out of wherever it is, for ever. The caller says so to the client."""
        request = sequence.request
        if sequence in self.waiting:
            self.waiting.remove(sequence)
        elif sequence.state is SequenceState.RUNNING:
            self._leave_row(sequence)
        elif sequence.state is SequenceState.FORK_PENDING:
            self._give_back_row(sequence)
        sequence.finish(reason)
        if not request.live_sequences:
            del self.requests[request.id]
            self.quarantined.pop(request.id, None)
            request.sequences = ()  # each points back: a cycle would wait for the collector
        elif sequence is request.primary and not request.is_forked:
            self._orphan_siblings(request)

    def end_request(
        self,
        request: Request,
        reason: FinishReason,
        code: EngineError | None = None,
        message: str | None = None,
    ) -> None:
        """Ends every live choice, and says so."""
        for sequence in reversed(request.live_sequences):
            self.end(sequence, reason)
            self.outputs.choices.append(
                ChoiceOutput(
                    request_id=request.id,
                    choice=sequence.choice,
                    finish_reason=reason,
                    error_code=code,
                    error_message=message,
                    memory=self.reported_memory(request),
                )
            )

    def memory_of(self, request: Request) -> RequestMemory:
        """What the request holds now, and has held."""
        pool, held = self.kv.pool, request.blocks
        pool.bring_up_to_now(tuple(held.counts))
        references = {block: pool.num_references(block) for block in held.counts}
        given = sum(n * pool.time.given((block,)) for block, n in held.counts.items())
        return RequestMemory(
            request_id=request.id,
            block_bytes=self.kv.block_bytes,
            blocks=len(held.counts),
            peak_blocks=held.peak_blocks,
            shared_blocks=sum(references[block] > n for block, n in held.counts.items()),
            share=sum(n / references[block] for block, n in held.counts.items()),
            block_seconds=held.block_seconds(given),
        )

    def reported_memory(self, request: Request) -> RequestMemory | None:
        """The same, for an output of a request that asked for it."""
        return self.memory_of(request) if request.request.reports_memory else None

    def step_in_flight(self, sequence: Sequence) -> int | None:
        """The last step that names the sequence's blocks, while it is not done."""
        return sequence.last_step_id if sequence.last_step_id in self.in_flight else None

    def _leave_row(self, sequence: Sequence) -> None:
        self.kv.release(sequence, self.step_in_flight(sequence))
        self.copies.pop(sequence, None)
        self.running.remove(sequence)
        self._give_back_row(sequence)

    def _give_back_row(self, sequence: Sequence) -> None:
        if sequence.row is None:
            raise ValueError(f"{sequence!r} has no row")
        self.rows.give_back(sequence.row)
        sequence.row = None

    def _dissolve_group(self, request: Request) -> None:
        for sibling in request.sequences:
            if sibling.state is SequenceState.FORK_PENDING:
                self._give_back_row(sibling)
                sibling.move_to(SequenceState.WAITING)

    def _orphan_siblings(self, request: Request) -> None:
        """The first choice ended before the fork: the others compute the prompt themselves."""
        request.is_forked = True
        self._dissolve_group(request)
        for sibling in request.live_sequences:
            sibling.move_to(SequenceState.PREEMPTED)
            self.waiting.push(sibling)
