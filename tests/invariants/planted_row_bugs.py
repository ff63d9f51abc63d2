"""Mistakes with rows and results, to plant in the engine: which token belongs to whom."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import replace

import pytest

from server.engine import scheduler as scheduler_module
from server.engine.results import apply_result
from server.engine.scheduler import Scheduler
from server.engine.scheduler_state import RowTable, SchedulerState
from server.engine.sequence import Sequence as LiveSequence
from server.engine.step import ScheduledRow, StepBuilder
from server.engine.step_plan import StepPlan, StepResult

Patch = pytest.MonkeyPatch


def swap_the_parameters_of_two_rows(patch: Patch) -> None:
    """Of two rows admitted together, each gets the other's sampling parameters."""
    seal = Scheduler._seal

    def swapped(scheduler: Scheduler, builder: StepBuilder) -> StepPlan:
        plan = seal(scheduler, builder)
        if len(plan.admitted) < 2:
            return plan
        first, second, *others = plan.admitted
        pair = (
            replace(first, sampling=second.sampling),
            replace(second, sampling=first.sampling),
        )
        return replace(plan, admitted=(*pair, *others))

    patch.setattr(Scheduler, "_seal", swapped)


def draw_every_choice_with_one_key(patch: Patch) -> None:
    """The choices of a request are all the first one."""
    admitted = ScheduledRow.admitted
    patch.setattr(ScheduledRow, "admitted", lambda row: replace(admitted(row), choice=0))


def hand_the_tokens_to_the_wrong_rows(patch: Patch) -> None:
    """Results are taken in another order than the plan's rows."""

    def rotated(state: SchedulerState, rows: Iterable[ScheduledRow], result: StepResult) -> int:
        rotation = (*result.rows[1:], *result.rows[:1])
        return apply_result(state, rows, replace(result, rows=rotation))

    patch.setattr(scheduler_module, "apply_result", rotated)


def take_a_stale_result(patch: Patch) -> None:
    """A sequence preempted while its step was under way still gets that step's token."""
    patch.setattr(ScheduledRow, "is_current", property(lambda row: not row.sequence.is_finished))


def release_a_row_twice(patch: Patch) -> None:
    """A row that was given back is free two times over."""
    give_back = RowTable.give_back

    def twice(rows: RowTable, row: int) -> None:
        give_back(rows, row)
        heapq.heappush(rows._free, row)

    patch.setattr(RowTable, "give_back", twice)


def never_tell_the_executor(patch: Patch) -> None:
    """Rows are given back without a word to the executor, which keeps their state."""
    patch.setattr(RowTable, "collect_released", lambda rows: rows._to_release.clear() or ())


def keep_the_rows_of_a_failed_step(patch: Patch) -> None:
    """After a step that raised, its tokens pass for computed."""

    def forgive(scheduler: Scheduler, plan: StepPlan, message: str) -> None:
        scheduler.state.in_flight.pop(plan.step_id)
        scheduler.kv.step_done(plan.step_id)

    patch.setattr(Scheduler, "fail_step", forgive)


def min_tokens_off_by_one(patch: Patch) -> None:
    """The last of the first ``min_tokens`` tokens may be an end."""
    flag = property(lambda seq: seq.num_generated_tokens + 1 < seq.sampling.min_tokens)
    patch.setattr(LiveSequence, "min_tokens_pending", flag)


def send_prompt_scores_twice(patch: Patch) -> None:
    """A prompt that is computed again after a preemption is scored again from its start."""
    forget = LiveSequence.forget_computed

    def forget_all(sequence: LiveSequence) -> None:
        forget(sequence)
        sequence.request.num_prompt_logits_sent = 0

    patch.setattr(LiveSequence, "forget_computed", forget_all)
