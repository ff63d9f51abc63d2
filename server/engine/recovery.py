"""A step that raised: which of its requests are tried again, and which end.

What the executor still holds is unknown, so every row is given up and rebuilt, and what a request
has computed so far stands. Each request that may be at fault is then retried alone, once:

    raised                 once: each request of the step is retried alone  again, alone: it ends
    no memory, one asked   it ends, and the others go on without it
    no memory, several     each is retried alone; the one that finds none even then ends

Requests that each fit alone and never together would fail for ever. So a request that was in such a
step before pays no second time for the others: the one that asks for most of the step ends.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from server.engine.request import EngineError, FinishReason
from server.engine.scheduler_state import SchedulerState
from server.engine.sequence import Request
from server.engine.step import ScheduledRow, StepFailure
from server.engine.step_plan import StepOutOfMemory, StepPlan

Names = tuple[str, ...]  # request ids


def failure_of(plan: StepPlan, error: Exception, log: logging.Logger) -> StepFailure:
    """What is kept of what a step raised; the log gets the rest."""
    if isinstance(error, StepOutOfMemory):
        log.warning("step %d: %s", plan.step_id, error)
        return StepFailure(error.reason, error.rows or tuple(row.row for row in plan.rows))
    log.error("step %d failed", plan.step_id, exc_info=error)
    return StepFailure(str(error))


def abandon_step(state: SchedulerState, plan: StepPlan) -> tuple[ScheduledRow, ...]:
    """Takes every row back from the executor. Returns those of the step whose requests live."""
    scheduled = state.in_flight.pop(plan.step_id)
    for sequence in list(state.running):
        state.preempt(sequence, counts=False)
    state.kv.step_done(plan.step_id)
    state.rows.release_again((*plan.released, *(row.row for row in plan.rows)))
    return tuple(row for row in scheduled if row.sequence.request.id in state.requests)


def retry_or_end(state: SchedulerState, rows: Iterable[ScheduledRow], message: str) -> None:
    """Each request is retried alone, or ends where it was retried already."""
    for request in requests_of(rows):
        if request.id in state.quarantined:
            state.end_request(request, FinishReason.ERROR, EngineError.INTERNAL, message)
        else:
            state.quarantined[request.id] = request


def end_for_memory(
    state: SchedulerState, rows: Iterable[ScheduledRow], asked: Iterable[int]
) -> tuple[Names, Names]:
    """Ends a request whose work found no memory. Returns the ids of whose work it was and, one or
    none, of who ended.

    ``asked`` are the rows of that work. Where these are several requests', each is retried alone
    first, but only once in its life.
    """
    wanted = set(asked)
    asking = [row for row in rows if row.row in wanted]
    requests = requests_of(asking)
    names = tuple(request.id for request in requests)
    if not requests:
        return names, ()
    if len(requests) > 1 and not any(request.was_short_of_memory for request in requests):
        for request in requests:
            request.was_short_of_memory = True
            state.quarantined[request.id] = request
        return names, ()
    largest = max(requests, key=lambda request: (_share(asking, request), request.arrival))
    state.end_request(
        largest, FinishReason.ERROR, EngineError.OUT_OF_MEMORY, _message(asking, largest)
    )
    return names, (largest.id,)


def requests_of(rows: Iterable[ScheduledRow]) -> list[Request]:
    """The requests of a step's rows, each once, in order."""
    return list({row.sequence.request: None for row in rows})


def _share(rows: Iterable[ScheduledRow], request: Request) -> int:
    """How much of a step a request is: its tokens, and its rows of logits."""
    return sum(
        row.chunk.num_tokens + row.chunk.num_logit_rows
        for row in rows
        if row.sequence.request is request
    )


def _message(rows: Iterable[ScheduledRow], request: Request) -> str:
    own = [row.chunk for row in rows if row.sequence.request is request]
    return (
        "The server found no memory for a step of this request, of "
        f"{sum(chunk.num_tokens for chunk in own)} tokens and "
        f"{sum(chunk.num_logit_rows for chunk in own)} rows of logits. Send a shorter prompt, "
        "a smaller n or fewer logprobs, or try again later."
    )
