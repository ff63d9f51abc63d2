"""Scheduler: what the next step computes, and what the last one means.

The one idea: a step spends a budget of tokens over sequences. A sequence has tokens that are known
and tokens that are computed, and each step computes some of the difference: a chunk of a prompt,
one decoded token, or the recomputation of what a preemption freed. There are no phases.

Running sequences come first, in priority order, then waiting ones; only the head of the queue is
ever admitted, so nothing overtakes it. The head is the first in priority order, or the first to
arrive where later ones have had their share (server.engine.turns).

A step may be planned while the one before it is under way. A sequence then has *in-flight* tokens,
whose places are known and whose ids are not: its next decode counts on them, unless the choice of
its next token needs the ids (server.engine.constraints). What only an id
decides (an end, a failure) is found out one step late, and that step's result is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from server.engine.constraints import TokenConstraints
from server.engine.engine_config import SchedulerConfig
from server.engine.events import PromptOutput
from server.engine.kv_cache_manager import KVCacheManager
from server.engine.preemption import choose_victim, is_protected
from server.engine.prefix_hit import BlockIds, PrefixHit
from server.engine.recovery import Names, abandon_step, end_for_memory, retry_or_end
from server.engine.request import EngineError, FinishReason
from server.engine.results import apply_result
from server.engine.scheduler_state import SchedulerState
from server.engine.sequence import Request, Sequence, SequenceState
from server.engine.step import Chunk, ScheduledRow, StepBuilder, StepCounts, next_chunk
from server.engine.step_plan import StepPlan, StepResult
from server.engine.turns import Turns


class Scheduler:
    """Pure policy: it starts nothing and waits for nothing. One thread calls it.

    ``abort``, ``finish`` and ``preempt`` may come at any time, also while a step is in flight.
    """

    def __init__(
        self,
        kv: KVCacheManager,
        config: SchedulerConfig,
        clock: Callable[[], float],
        constraints: TokenConstraints,
    ) -> None:
        self.kv = kv
        self._constraints = constraints
        self.config = config
        self.state = SchedulerState(kv, config)
        self._clock = clock
        self.turns = Turns(config.max_num_batched_tokens)
        self._next_step_id = 0
        self._counts = StepCounts()

    # -- a step ------------------------------------------------------------------------------

    def schedule(self, max_decode_steps: int = 1) -> StepPlan:
        """The next step, which gives each row at most ``max_decode_steps`` tokens. A plan without
        rows is not to be run: there is nothing to compute.

        1. Waiting requests past their deadline end.
        2. Running sequences get their next tokens; one that lacks a block makes room.
        3. If nothing lacked blocks, waiting sequences are admitted while budgets last.
        4. Where every row decodes and nobody waits, they may be given several tokens.
        5. What was decided becomes a plan.

        While a request is quarantined because it was in a step that failed, it runs alone once.
        """
        self._expire()
        builder = StepBuilder(self.config.max_num_batched_tokens, self.config.max_logit_rows)
        quarantined = next(iter(self.state.quarantined.values()), None)
        if quarantined is not None:
            self._fill(builder, only=quarantined)
        if not builder.rows:
            self._fill(builder)
        if max_decode_steps > 1 and not self.state.waiting:
            self._repeat_decode(builder, max_decode_steps)
        return self._seal(builder)

    @property
    def is_isolating(self) -> bool:
        """A request is quarantined: nothing may run beside it, not even the step after it.

        Otherwise a step can be planned while one is in flight. Which sequences have a row in it is
        decided one by one: those that wait for a token (server.engine.constraints) have none.
        """
        return bool(self.state.quarantined)

    def take_counts(self) -> StepCounts:
        """What was done since the last call, for the step that was just planned."""
        counts, self._counts = self._counts, StepCounts()
        return counts

    def take_discarded(self) -> int:
        """Tokens that were discarded since the last call: their sequence had ended, at the
        engine or at its client, or had lost its row. Counted here and nowhere else."""
        count, self.state.num_discarded_tokens = self.state.num_discarded_tokens, 0
        return count

    def update(self, plan: StepPlan, result: StepResult) -> None:
        """Takes in a step's checked result: confirms, caches, forks, appends tokens, ends."""
        scheduled = self.state.in_flight.pop(plan.step_id)
        apply_result(self.state, scheduled, result)
        self.kv.step_done(plan.step_id)

    def fail_step(self, plan: StepPlan, message: str) -> None:
        """The step raised. Its requests are tried once more, from the tokens they had, or ended.

        Steps planned after it are void: ``discard_step`` must end them before anything is planned.
        """
        retry_or_end(self.state, abandon_step(self.state, plan), message)

    def fail_for_memory(self, plan: StepPlan, rows: Iterable[int]) -> tuple[Names, Names]:
        """The step found no memory for the work of ``rows``: (whose they are, who ended for it).

        Steps planned after it are void, as after any failure.
        """
        return end_for_memory(self.state, abandon_step(self.state, plan), rows)

    def discard_step(self, plan: StepPlan, num_tokens: int) -> None:
        """The step followed one that raised: of the ``num_tokens`` that it chose none is taken."""
        self.state.num_discarded_tokens += num_tokens
        self.state.in_flight.pop(plan.step_id)
        self.kv.step_done(plan.step_id)
        self.state.rows.release_again((*plan.released, *(row.row for row in plan.rows)))

    # -- from outside ------------------------------------------------------------------------

    def abort(self, request_ids: Iterable[str]) -> None:
        """Ends these requests now. An unknown id is not an error: it may just have ended."""
        for request_id in request_ids:
            request = self.state.requests.get(request_id)
            if request is not None:
                self.state.end_request(request, FinishReason.ABORT)

    def finish(self, request_id: str, choice: int, num_tokens: int) -> None:
        """Ends one choice without a word: its end was decided, and told, elsewhere.

        ``num_tokens`` is how many of its tokens were taken there. What was generated after them is
        discarded.
        """
        request = self.state.requests.get(request_id)
        if request is None or not 0 <= choice < len(request.sequences):
            return
        sequence = request.sequences[choice]
        if not sequence.is_finished:
            self.state.num_discarded_tokens += max(0, sequence.num_generated_tokens - num_tokens)
            self.state.end(sequence, FinishReason.STOP)

    def preempt(self, request_id: str, choice: int) -> bool:
        """Sends a running choice back to the queue. False where it does not run or is protected."""
        request = self.state.requests.get(request_id)
        if request is None or not 0 <= choice < len(request.sequences):
            return False
        sequence = request.sequences[choice]
        if sequence.state is not SequenceState.RUNNING or self._is_protected(sequence):
            return False
        self.state.preempt(sequence)
        return True

    # -- the parts of schedule() -------------------------------------------------------------

    def _expire(self) -> None:
        now = self._clock()
        for request in self.state.waiting.expired(now):
            waited = now - request.arrival_time
            message = (
                f"The request waited {waited:.1f} s and could not be started. "
                "The server is busy; try again later."
            )
            self.state.end_request(request, FinishReason.ERROR, EngineError.QUEUE_TIMEOUT, message)

    def _fill(self, builder: StepBuilder, only: Request | None = None) -> None:
        """With the sequences of all requests, or of one."""
        self._schedule_running(builder, only)
        self._schedule_waiting(builder, only)

    def _schedule_running(self, builder: StepBuilder, only: Request | None) -> None:
        """Each sequence leaves a token and a row of logits to each of those after it, so that a
        long prompt holds up no answer, whatever their ranks."""
        running = [s for s in self.state.running if only is None or s.request is only]
        for index, sequence in enumerate(running):
            if sequence.state is not SequenceState.RUNNING:
                continue  # preempted for one before it
            if sequence.num_in_flight_tokens and self._constraints.waits(sequence):
                continue
            others = len(running) - index - 1
            chunk = self._next_chunk(builder, sequence, sequence.num_computed_tokens, others)
            if chunk is None:
                continue
            new_ids = self._make_room(builder, sequence, chunk.end)
            if new_ids is not None:
                self._plan_row(builder, sequence, chunk, new_ids)

    def _make_room(
        self, builder: StepBuilder, sequence: Sequence, num_tokens: int
    ) -> BlockIds | None:
        """The new blocks that ``num_tokens`` tokens need, taken from others where it must be.

        None: the sequence waits with what it has, or gave way itself. It waits as well where enough
        blocks come free when the steps in flight are done: no other sequence gives way for it.
        """
        while (new_ids := self.kv.extend(sequence, num_tokens)) is None:
            builder.was_short_of_blocks = True
            if self.kv.will_have_blocks(sequence, num_tokens, self.state.running):
                return None
            victim = choose_victim(self.state.running, self.config.max_preemptions)
            if victim is None:
                return None
            builder.remove(victim)
            self._counts.num_preemptions += 1
            self.state.preempt(victim)
            if victim is sequence:
                return None
        return new_ids

    def _schedule_waiting(self, builder: StepBuilder, only: Request | None) -> None:
        if builder.was_short_of_blocks:
            return
        promised = self._promised_blocks()
        while (sequence := self._next_waiting(only)) is not None:
            if self.state.rows_needed(sequence) > self.state.rows.num_free:
                return
            hit = self._find_prefix(sequence)
            chunk = self._next_chunk(builder, sequence, hit.num_tokens)
            if chunk is None or not self._admit(sequence, hit, chunk, promised):
                return
            self._note_admission(sequence, hit)
            if self.turns.is_by_arrival:
                sequence.request.note_turn()
            self.state.start(sequence, hit.num_tokens)
            self._plan_row(builder, sequence, chunk, ())
            promised += self.kv.blocks_missing(sequence, sequence.num_tokens)

    def _promised_blocks(self) -> int:
        """Blocks that running sequences lack for the tokens they already know."""
        return sum(
            self.kv.blocks_missing(sequence, sequence.num_tokens) for sequence in self.state.running
        )

    def _next_waiting(self, only: Request | None) -> Sequence | None:
        waiting = self.state.waiting
        if only is not None:
            return waiting.head_of(only)
        return waiting.oldest() if self.turns.is_by_arrival else waiting.head()

    def _find_prefix(self, sequence: Sequence) -> PrefixHit:
        """At least one token is left to compute: its logits are wanted.

        What owes prompt log-probabilities needs the logits of every prompt token not yet scored.
        What comes back with blocks reserved may share none of a window group.
        """
        if self.kv.has_windows and self._is_protected(sequence):
            return self.kv.no_prefix
        request = sequence.request
        if sequence.choice == 0 and request.owes_prompt_logits:
            return self.kv.find_prefix(sequence, request.num_prompt_logits_sent)
        return self.kv.find_prefix(sequence, sequence.num_tokens - 1)

    def _admit(self, sequence: Sequence, hit: PrefixHit, chunk: Chunk, promised: int) -> bool:
        """Fills the tables, if all known tokens and one more fit beside what is promised."""
        if self._is_protected(sequence):
            sequence.num_reserved_tokens = sequence.max_num_tokens
        foreseen = min(sequence.num_tokens + 1, sequence.max_num_tokens)
        wanted = max(foreseen, sequence.num_reserved_tokens)
        if not self.kv.can_hold(hit, wanted, spare=promised):
            return False
        return self.kv.admit(sequence, hit, max(chunk.end, sequence.num_reserved_tokens))

    def _note_admission(self, sequence: Sequence, hit: PrefixHit) -> None:
        request = sequence.request
        self._counts.prefix_queried_tokens += sequence.num_tokens
        self._counts.prefix_hit_tokens += hit.num_tokens
        if not request.was_scheduled:
            request.was_scheduled = True
            waited = self._clock() - request.arrival_time
            self._counts.queue_seconds.append(waited)
            self.state.outputs.prompts.append(
                PromptOutput(request.id, hit.num_tokens, queue_seconds=waited)
            )

    def _next_chunk(
        self, builder: StepBuilder, sequence: Sequence, start: int, others: int = 0
    ) -> Chunk | None:
        """``others`` come after it, and are each left one of both budgets as far as these go."""
        tokens_left = min(builder.tokens_left, max(1, builder.tokens_left - others))
        logits_left = min(builder.logits_left, max(1, builder.logits_left - others))
        return next_chunk(sequence, start, tokens_left, logits_left)

    def _plan_row(
        self, builder: StepBuilder, sequence: Sequence, chunk: Chunk, new_ids: BlockIds
    ) -> None:
        if sequence.row is None:
            raise ValueError(f"{sequence!r} is planned without a row")
        builder.add(
            ScheduledRow(
                sequence=sequence,
                epoch=sequence.epoch,
                row=sequence.row,
                chunk=chunk,
                is_admitted=not self.state.rows.is_known(sequence.row),
                new_block_ids=new_ids,
                min_tokens_pending=chunk.samples and sequence.min_tokens_pending,
            )
        )
        self.turns.count(sequence, chunk.num_tokens, self.state.waiting.oldest())
        sequence.num_computed_tokens = chunk.end
        sequence.num_in_flight_tokens += chunk.num_sampled

    def _repeat_decode(self, builder: StepBuilder, most: int) -> None:
        """As many tokens for each row as all of them want, and as the step's budget and the free
        blocks are enough for. None gives way for another's: that is for a step of one token."""
        rows = tuple(builder.rows.values())
        most = min(most, self.config.max_num_batched_tokens // max(1, len(rows)))
        steps = min((self._decode_steps(row, most) for row in rows), default=1)
        if steps < 2 or not self.kv.can_extend(
            (row.sequence, row.chunk.start + steps) for row in rows
        ):
            return
        builder.num_decode_steps = steps
        for row in rows:
            sequence, chunk = row.sequence, row.chunk.repeated(steps)
            more = self.kv.extend(sequence, chunk.end)
            if more is None:
                raise ValueError(f"{sequence!r} lacks blocks that were there")
            if row.new_block_ids:
                more = tuple(a + b for a, b in zip(row.new_block_ids, more, strict=True))
            builder.rows[sequence] = replace(row, chunk=chunk, new_block_ids=more)
            sequence.num_computed_tokens = chunk.end
            sequence.num_in_flight_tokens += steps - row.chunk.num_sampled

    def _decode_steps(self, row: ScheduledRow, most: int) -> int:
        """The most tokens that a row can be given at once."""
        sequence = row.sequence
        if not row.chunk.is_decode or row.min_tokens_pending or self._constraints.waits(sequence):
            return 1
        wanted = min(sequence.max_num_tokens, self.config.max_model_len) - sequence.num_tokens
        return min(most, sequence.request.max_decode_steps, wanted)

    def _seal(self, builder: StepBuilder) -> StepPlan:
        step_id = self._next_step_id
        if not builder.rows:
            return StepPlan(step_id)
        self._next_step_id += 1
        rows = tuple(builder.rows.values())
        plan = StepPlan(
            step_id=step_id,
            rows=tuple(row.planned() for row in rows),
            admitted=tuple(row.admitted() for row in rows if row.is_admitted),
            released=self.state.rows.collect_released(),
            block_copies=self.state.collect_copies(step_id),
            num_decode_steps=builder.num_decode_steps,
        )
        for row in rows:
            self.state.rows.mark_known(row.row)
            row.sequence.last_step_id = step_id
            self._counts.count_row(row)
        self.state.in_flight[step_id] = rows
        return plan

    def _is_protected(self, sequence: Sequence) -> bool:
        return is_protected(sequence, self.config.max_preemptions)
