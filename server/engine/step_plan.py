"""StepPlan and StepResult: all that passes between the scheduler and an executor.

Plain data that encodes with msgspec, so that several ranks can be sent the same bytes. A running
sequence has a stable *row*: the runner keeps that row's tokens, penalty counts and bias between
steps, so a plan never carries a decode token, and can be made while that token is still being
chosen. ``admitted`` carries everything that rebuilds a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from server.engine.request import SamplingParams, Task


@dataclass(frozen=True, slots=True)
class AdmittedRow:
    """A sequence that takes a row in this step: new, forked, or resumed after preemption.

    ``token_ids`` are all that are known: the prompt, then what was generated so far.
    ``num_computed_tokens`` of them already have their keys and values in the blocks of
    ``block_tables``, one tuple of block ids a group, where NULL_BLOCK (server.engine.kv_spec) is
    for what the tokens to be computed do not see: nothing reads it. ``choice`` is the sequence's
    index among its request's n; the random key is derived from (seed, choice).
    """

    row: int
    token_ids: tuple[int, ...]
    num_prompt_tokens: int
    num_computed_tokens: int
    sampling: SamplingParams
    choice: int
    block_tables: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class PlannedRow:
    """One row's work in this step: its next ``num_scheduled_tokens`` tokens.

    ``new_block_ids`` extend the row's tables, one tuple a group (for a row admitted in the same
    plan they are already in its ``block_tables`` and these are empty). ``samples`` says that the
    chunk reaches the row's last token, so that its logits choose a new one. ``num_prompt_logits``
    positions, the first of the chunk onwards, report the log-probability of the prompt token that
    follows each. ``min_tokens_pending`` forbids the end-of-sequence and stop ids for this token.
    """

    row: int
    num_scheduled_tokens: int
    new_block_ids: tuple[tuple[int, ...], ...] = ()
    samples: bool = False
    num_prompt_logits: int = 0
    min_tokens_pending: bool = False


@dataclass(frozen=True, slots=True)
class StepPlan:
    """Order of effects: released, block_copies, admitted, then the forward over rows.

    ``block_copies`` are (source, destination) block ids; all sources are read before any write.
    ``released`` may name a row that the executor does not hold,
    which is not an error: after a step that raised, every row of that step is released again.

    ``num_decode_steps`` above 1 gives each row so many tokens, one behind the other. Then every row
    samples, and of its ``num_scheduled_tokens``, which are as many, only the first is known.
    """

    step_id: int
    rows: tuple[PlannedRow, ...] = ()
    admitted: tuple[AdmittedRow, ...] = ()
    released: tuple[int, ...] = ()
    block_copies: tuple[tuple[int, int], ...] = ()
    num_decode_steps: int = 1

    @property
    def num_tokens(self) -> int:
        return sum(row.num_scheduled_tokens for row in self.rows)


@dataclass(frozen=True, slots=True)
class LogprobArrays:
    """Log-probabilities of raw float32 logits, as packed little-endian arrays.

    Both arrays have shape [num_positions, width]. Column 0 is the token itself, columns 1.. the
    most likely tokens in falling order (an equal pair in rising id). ``token_ids`` is int32,
    ``logprobs`` float32 in nats.
    """

    num_positions: int
    width: int
    token_ids: bytes
    logprobs: bytes


@dataclass(frozen=True, slots=True)
class RowResult:
    """What one planned row gave: its tokens, and what was asked about them.

    Where the logits of one were not all numbers, ``non_finite``, the tokens are those before it.
    """

    row: int
    token_ids: tuple[int, ...] = ()
    non_finite: bool = False
    logprobs: LogprobArrays | None = None
    prompt_logprobs: LogprobArrays | None = None


@dataclass(frozen=True, slots=True)
class StepResult:
    step_id: int
    rows: tuple[RowResult, ...]  # in the order of StepPlan.rows
    forward_seconds: float = 0.0
    sample_seconds: float = 0.0
    peak_activation_bytes: int = 0

    @property
    def num_tokens(self) -> int:
        """Tokens that were chosen."""
        return sum(len(row.token_ids) for row in self.rows)


class ExecutorLost(Exception):
    """The executor can run nothing any more: the engine must be started again.

    Anything else that a step raises is that step's own failure, after which others may succeed.
    """


class StepOutOfMemory(Exception):
    """There was no memory for a step; the next one may find some.

    ``rows`` are the planned rows whose work asked for it: one where that is known, all of them
    where the work was everybody's. ``reason`` is what the allocator said.
    """

    def __init__(self, rows: tuple[int, ...], reason: str) -> None:
        super().__init__(f"no memory for the work of rows {list(rows)}: {reason}")
        self.rows = rows
        self.reason = reason


class ForwardHandle(Protocol):
    """A forward pass that may still be running. Opaque to the engine."""


class PendingResult(Protocol):
    def result(self) -> StepResult:
        """Waits for the step. Raises whatever the step raised, StepOutOfMemory where it found no
        memory, or ExecutorLost."""
        ...


class Executor(Protocol):
    """Runs plans in order. ``masks`` are those of server.engine.constraints, or None.

    Where it ``overlaps``, ``forward`` and ``sample`` only start work: the next plan may come before
    the last result was asked for, and may schedule the token that the step in flight is choosing.
    Such a plan counts on that token only by its place, so the executor keeps it; a row whose result
    was not finite has some token there. Steps are done in order, at most two are in flight, and
    none is started between one that raised and the last one's result.
    """

    @property
    def overlaps(self) -> bool: ...

    @property
    def supported_tasks(self) -> frozenset[Task]: ...

    def max_decode_steps(self, sampling: SamplingParams) -> int:
        """The most tokens that one plan may give a row that samples so; 1 where it overlaps."""
        ...

    def forward(self, plan: StepPlan) -> ForwardHandle: ...

    def sample(self, handle: ForwardHandle, masks: dict[int, bytes] | None) -> PendingResult: ...
