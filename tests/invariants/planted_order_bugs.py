"""Mistakes with order and bounds, to plant in the engine: who is next, and how much is too much."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from server.engine import scheduler as scheduler_module
from server.engine.admission import Admission
from server.engine.queue import WaitingQueue
from server.engine.sequence import Sequence as LiveSequence
from server.engine.step import ScheduledRow, StepBuilder

Patch = pytest.MonkeyPatch


def preempt_the_oldest(patch: Patch) -> None:
    """What arrived first gives way."""

    def oldest(running: Iterable[LiveSequence], max_preemptions: int) -> LiveSequence:
        return min(running, key=lambda sequence: sequence.priority_key)

    patch.setattr(scheduler_module, "choose_victim", oldest)


def ignore_the_queue_bound(patch: Patch) -> None:
    """However many wait, one more is accepted."""
    patch.setattr(Admission, "_queue_refusal", lambda admission, ids, requests: None)


def serve_the_last_first(patch: Patch) -> None:
    """The newest of the queue is served first."""
    patch.setattr(WaitingQueue, "head", lambda queue: next(reversed(list(queue)), None))


def ignore_the_deadline(patch: Patch) -> None:
    """What waited too long is served all the same."""
    patch.setattr(WaitingQueue, "expired", lambda queue, now: [])


def spend_the_budget_twice(patch: Patch) -> None:
    """A step's rows each get the whole budget of tokens."""

    def add(builder: StepBuilder, scheduled: ScheduledRow) -> None:
        builder.logits_left -= scheduled.chunk.num_logit_rows
        builder.rows[scheduled.sequence] = scheduled

    patch.setattr(StepBuilder, "add", add)
