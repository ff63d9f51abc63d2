"""A step between its beginning and its end, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass

from server.engine.events import StepStats
from server.engine.plan import PendingResult, StepPlan, StepResult
from server.engine.step_draft import StepCounts


@dataclass(frozen=True, slots=True)
class StepFailure:
    """Why a step gave no result. ``asked`` are the rows that found no memory, where it was that.

    It holds no exception: that would keep alive what the step had made.
    """

    reason: str
    asked: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Shortage:
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
