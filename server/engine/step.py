"""A step between its beginning and its end, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from server.engine.events import StepStats
from server.engine.prefix_hit import BlockIds
from server.engine.sequence import Sequence
from server.engine.step_plan import AdmittedRow, PendingResult, PlannedRow, StepPlan, StepResult

# StepBuilder: a step while it is put together, and what is remembered of it until it is done.


@dataclass(frozen=True, slots=True)
class Chunk:
    """A sequence's next tokens, and what their logits are for.

    In a step that gives each row several tokens (``StepPlan.num_decode_steps``) only the first of
    ``num_tokens`` is known before.
    """

    start: int
    num_tokens: int
    num_prompt_logits: int
    samples: bool
    num_decode_steps: int = 1

    @property
    def end(self) -> int:
        return self.start + self.num_tokens

    @property
    def num_logit_rows(self) -> int:
        return self.num_prompt_logits + self.samples

    @property
    def num_sampled(self) -> int:
        """Tokens that are chosen."""
        return self.num_decode_steps if self.samples else 0

    @property
    def is_decode(self) -> bool:
        """One known token is computed, and its logits choose the next."""
        return self.samples and self.num_tokens == 1 and not self.num_prompt_logits

    def repeated(self, num_decode_steps: int) -> Chunk:
        """A decode chunk, so many times over."""
        return replace(self, num_tokens=num_decode_steps, num_decode_steps=num_decode_steps)


def next_chunk(sequence: Sequence, start: int, max_tokens: int, max_logits: int) -> Chunk | None:
    """The longest next chunk from ``start`` within both budgets, or None.

    Prompt positions whose log-probabilities were delivered before a preemption are a chunk of
    their own, because a chunk's logits are those of its first positions.
    """
    length = min(sequence.num_tokens_to_compute - start, max_tokens)
    first_logit, last_logit = _prompt_logit_span(sequence)
    if start < first_logit:
        length = min(length, first_logit - start)

    def chunk(num_tokens: int) -> Chunk:
        end = start + num_tokens
        logits = max(0, min(end, last_logit) - start) if start >= first_logit else 0
        is_last = end == sequence.num_tokens_with_in_flight
        samples = is_last and end < sequence.max_num_tokens
        return Chunk(start, num_tokens, logits, samples)

    # Rows of logits grow by at most one a token: full length, all but the sampled one, or as many
    # tokens as there are rows.
    for num_tokens in (length, length - 1, min(length, max_logits)):
        if num_tokens > 0 and chunk(num_tokens).num_logit_rows <= max_logits:
            return chunk(num_tokens)
    return None


def _prompt_logit_span(sequence: Sequence) -> tuple[int, int]:
    """Positions [first, last) whose next prompt token is still to be scored."""
    request = sequence.request
    if sequence.choice != 0 or not request.owes_prompt_logits:
        return (0, 0)
    return (request.num_prompt_logits_sent, sequence.num_prompt_tokens - 1)


@dataclass(frozen=True, slots=True)
class ScheduledRow:
    """One row of a step: what was planned, and for which life of the sequence."""

    sequence: Sequence
    epoch: int
    row: int
    chunk: Chunk
    is_admitted: bool
    new_block_ids: BlockIds
    min_tokens_pending: bool

    @property
    def is_current(self) -> bool:
        """The sequence has neither ended nor lost its row since."""
        return self.epoch == self.sequence.epoch and not self.sequence.is_finished

    def planned(self) -> PlannedRow:
        return PlannedRow(
            row=self.row,
            num_scheduled_tokens=self.chunk.num_tokens,
            new_block_ids=() if self.is_admitted else self.new_block_ids,
            samples=self.chunk.samples,
            num_prompt_logits=self.chunk.num_prompt_logits,
            min_tokens_pending=self.min_tokens_pending,
        )

    def admitted(self) -> AdmittedRow:
        sequence = self.sequence
        return AdmittedRow(
            row=self.row,
            token_ids=tuple(sequence.token_ids),
            num_prompt_tokens=sequence.num_prompt_tokens,
            num_computed_tokens=self.chunk.start,
            sampling=sequence.sampling,
            choice=sequence.choice,
            block_tables=tuple(tuple(table) for table in sequence.block_tables),
        )


@dataclass(slots=True)
class StepBuilder:
    """Budgets that are left, and the rows so far."""

    tokens_left: int
    logits_left: int
    rows: dict[Sequence, ScheduledRow] = field(default_factory=dict)
    was_short_of_blocks: bool = False
    num_decode_steps: int = 1

    def add(self, scheduled: ScheduledRow) -> None:
        self.tokens_left -= scheduled.chunk.num_tokens
        self.logits_left -= scheduled.chunk.num_logit_rows
        self.rows[scheduled.sequence] = scheduled

    def remove(self, sequence: Sequence) -> None:
        """Takes a sequence out again, where it was in, and gives its budget back."""
        scheduled = self.rows.pop(sequence, None)
        if scheduled is not None:
            self.tokens_left += scheduled.chunk.num_tokens
            self.logits_left += scheduled.chunk.num_logit_rows


@dataclass(slots=True)
class StepCounts:
    """What one call of schedule() did, for StepStats."""

    num_preemptions: int = 0
    prefix_queried_tokens: int = 0
    prefix_hit_tokens: int = 0
    num_prompt_tokens: int = 0
    num_decode_tokens: int = 0
    queue_seconds: list[float] = field(default_factory=list)

    def count_row(self, scheduled: ScheduledRow) -> None:
        chunk = scheduled.chunk
        in_prompt = max(0, min(chunk.end, scheduled.sequence.num_prompt_tokens) - chunk.start)
        self.num_prompt_tokens += in_prompt
        self.num_decode_tokens += chunk.num_tokens - in_prompt


@dataclass(frozen=True, slots=True)
class StepFailure:
    """Why a step gave no result. ``asked`` are the rows that found no memory, where it was that.

    It holds no exception: that would keep alive what the step had made.
    """

    reason: str
    asked: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class OutOfMemoryEvent:
    """A step that found no memory, for the log: whose work it was, and who ended for it."""

    step_id: int
    num_tokens: int
    num_rows: int
    asked: tuple[str, ...]
    ended: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class StepInFlight:
    """A step that was handed to the executor. ``pending`` is None where that raised already, and
    ``failure`` says what.

    ``began`` is in the engine clock's seconds.
    """

    plan: StepPlan
    pending: PendingResult | None
    began: float
    counts: StepCounts
    failure: StepFailure | None = None


def step_stats(
    step: StepInFlight, result: StepResult | None, seconds: float, num_discarded: int
) -> StepStats:
    """The step's figures, once it has ended; no result where it raised or followed one that did."""
    counts = step.counts
    return StepStats(
        step_id=step.plan.step_id,
        num_rows=len(step.plan.rows),
        num_prompt_tokens=counts.num_prompt_tokens,
        num_decode_tokens=counts.num_decode_tokens,
        num_preemptions=counts.num_preemptions,
        prefix_queried_tokens=counts.prefix_queried_tokens,
        prefix_hit_tokens=counts.prefix_hit_tokens,
        step_seconds=seconds,
        forward_seconds=0.0 if result is None else result.forward_seconds,
        sample_seconds=0.0 if result is None else result.sample_seconds,
        queue_seconds=tuple(counts.queue_seconds),
        num_discarded_tokens=num_discarded,
    )
