"""What a completed step means for each of its sequences."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from server.engine.events import ChoiceOutput, PromptOutput
from server.engine.preemption import is_protected
from server.engine.request import EngineError, FinishReason
from server.engine.scheduler_state import SchedulerState
from server.engine.sequence import Sequence
from server.engine.step import ScheduledRow
from server.engine.step_plan import RowResult, StepPlan, StepResult

# What ends a sequence after a token, as far as the engine decides it.
#
# Stop strings are decided where the text is known, by server.output, which then calls finish().


@dataclass(frozen=True, slots=True)
class StopDecision:
    reason: FinishReason
    stop_token_id: int | None = None


def check_stop(sequence: Sequence, max_model_len: int) -> StopDecision | None:
    """Whether the last known token, just generated, ends the sequence.

    A stop id counts only where it was allowed: after ``min_tokens`` other tokens.
    """
    token_id = sequence.token_ids[-1]
    may_stop = sequence.num_generated_tokens > sequence.sampling.min_tokens
    if may_stop and token_id in sequence.request.stop_token_ids:
        return StopDecision(FinishReason.STOP, token_id)
    if not sequence.wants_tokens or sequence.num_tokens >= max_model_len:
        return StopDecision(FinishReason.LENGTH)
    return None


def check_result(plan: StepPlan, result: StepResult) -> None:
    """
    Raises:
        ValueError: the result does not answer the plan row by row.
    """
    if result.step_id != plan.step_id:
        raise ValueError(f"result of step {result.step_id} came for step {plan.step_id}")
    if [row.row for row in result.rows] != [row.row for row in plan.rows]:
        raise ValueError(f"the result's rows are not those of step {plan.step_id}")
    for planned, row in zip(plan.rows, result.rows, strict=True):
        wanted, given = plan.num_decode_steps if planned.samples else 0, len(row.token_ids)
        if given >= max(1, wanted) if row.non_finite else given != wanted:
            raise ValueError(f"row {row.row} gave {given} tokens, not {wanted}")
        scored = 0 if row.prompt_logprobs is None else row.prompt_logprobs.num_positions
        if scored != planned.num_prompt_logits and not row.non_finite:
            raise ValueError(
                f"row {row.row} scored {scored} prompt tokens, not {planned.num_prompt_logits}"
            )


def apply_result(
    state: SchedulerState, scheduled: Iterable[ScheduledRow], result: StepResult
) -> None:
    """Row by row. The tokens of rows that ended or were preempted since the plan are discarded."""
    for row, row_result in zip(scheduled, result.rows, strict=True):
        if row.is_current:
            _apply_row(state, row, row_result)
        else:
            state.num_discarded_tokens += len(row_result.token_ids)


def _apply_row(state: SchedulerState, row: ScheduledRow, result: RowResult) -> None:
    """
    1. The step went through: its request is no longer quarantined.
    2. The computed tokens are confirmed, and full blocks offered to the cache.
    3. Prompt log-probabilities are delivered, where they are numbers.
    4. Where the prompt is complete, the other choices fork.
    5. What is behind the windows now is freed, once those choices have what they see of it.
    6. The tokens are delivered, and may end the sequence.

    Of several tokens those behind one that ends the sequence are discarded, and with them what was
    computed of them.
    """
    sequence, request = row.sequence, row.sequence.request
    state.quarantined.pop(request.id, None)
    sequence.num_in_flight_tokens -= row.chunk.num_sampled
    taken, ending = _take_tokens(state, sequence, result.token_ids)
    in_vain = max(0, row.chunk.num_sampled - max(1, len(taken)))  # computed behind the end
    sequence.num_computed_tokens -= in_vain
    if not result.non_finite:
        sequence.num_committed_tokens = row.chunk.end - in_vain
        state.kv.commit(sequence)
    if result.prompt_logprobs is not None and not result.non_finite:
        _deliver_prompt_logprobs(state, row, result)
    prompt_is_computed = row.chunk.end >= sequence.num_prompt_tokens
    if not request.is_forked and prompt_is_computed:
        state.fork(request, reserve=is_protected(sequence, state.config.max_preemptions))
    state.kv.free_behind_window(sequence)
    if taken:
        _deliver_tokens(state, row, result, taken, ending)
    if result.non_finite and ending is None:
        _end_non_finite(state, row)
    elif not result.token_ids and prompt_is_computed and not sequence.wants_tokens:
        _end_scored_prompt(state, row)


def _deliver_prompt_logprobs(state: SchedulerState, row: ScheduledRow, result: RowResult) -> None:
    request, chunk = row.sequence.request, row.chunk
    request.num_prompt_logits_sent = chunk.start + chunk.num_prompt_logits
    state.outputs.prompts.append(
        PromptOutput(
            request_id=request.id,
            num_cached_tokens=0,
            first_position=chunk.start + 1,
            logprobs=result.prompt_logprobs,
        )
    )


def _take_tokens(
    state: SchedulerState, sequence: Sequence, token_ids: tuple[int, ...]
) -> tuple[tuple[int, ...], StopDecision | None]:
    """Appends the tokens up to one that ends the sequence; the others are discarded."""
    for taken, token_id in enumerate(token_ids, start=1):
        sequence.token_ids.append(token_id)
        ending = check_stop(sequence, state.config.max_model_len)
        if ending is not None:
            state.num_discarded_tokens += len(token_ids) - taken
            return token_ids[:taken], ending
    return token_ids, None


def _deliver_tokens(
    state: SchedulerState,
    row: ScheduledRow,
    result: RowResult,
    token_ids: tuple[int, ...],
    ending: StopDecision | None,
) -> None:
    sequence = row.sequence
    if ending is not None:
        state.end(sequence, ending.reason)
    state.outputs.choices.append(
        ChoiceOutput(
            request_id=sequence.request.id,
            choice=sequence.choice,
            token_ids=token_ids,
            logprobs=result.logprobs,
            finish_reason=None if ending is None else ending.reason,
            stop_token_id=None if ending is None else ending.stop_token_id,
            memory=state.reported_memory(sequence.request),
        )
    )


def _end_non_finite(state: SchedulerState, row: ScheduledRow) -> None:
    sequence = row.sequence
    state.end(sequence, FinishReason.ERROR)
    state.outputs.choices.append(
        ChoiceOutput(
            request_id=sequence.request.id,
            choice=sequence.choice,
            finish_reason=FinishReason.ERROR,
            error_code=EngineError.NON_FINITE,
            error_message="The model's output for this request was not a finite number.",
            memory=state.reported_memory(sequence.request),
        )
    )


def _end_scored_prompt(state: SchedulerState, row: ScheduledRow) -> None:
    """max_tokens is 0: the prompt was all there was to compute, for every choice."""
    state.end_request(row.sequence.request, FinishReason.LENGTH)
