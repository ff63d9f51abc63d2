"""The engine under every order of events that hypothesis can think of."""

from __future__ import annotations

import pytest

from tests.invariants.engine_machine import (
    EXAMPLES,
    STEPS,
    EngineMachine,
    counted_machine,
    explore,
)
from tests.invariants.engine_oracle import Visits

RULES = (
    *("submit", "submit_list", "submit_a_live_id", "abort", "disconnect", "finish_with_stop"),
    *("step", "steps", "begin_step", "end_step", "fail_a_step", "force_preemption"),
    *("let_time_pass", "reset_prefix_cache", "drain"),
)
STATES = (
    *("waiting", "fork_pending", "running", "preempted", "finished_stop", "finished_length"),
    *("finished_abort", "finished_error"),
)
EVENTS = (
    *("prefix hit", "freed behind a window", "hit behind whose window blocks are gone"),
    *("preempted", "block copied", "fork or resumed choice", "mixed step"),
    *("step failed", "step void", "two in flight", "token dropped", "error NON_FINITE"),
    *(
        "several tokens a row",
        "error INTERNAL",
        "error QUEUE_TIMEOUT",
        "refused CAPACITY",
        "refused CONTEXT_LENGTH",
    ),
    *("refused QUEUE_FULL", "refused SHUTTING_DOWN"),
)


def assert_everything_was_visited(visits: Visits, min_steps: int) -> None:
    for name, counter, wanted in (
        ("rule", visits.rules, RULES),
        ("state", visits.states, STATES),
        ("event", visits.events, EVENTS),
    ):
        missing = [item for item in wanted if not counter[item]]
        assert not missing, f"no visit of {name} {missing}"
    assert visits.rules.total() >= min_steps


def run(
    machine: type[EngineMachine],
    report: list[tuple[str, Visits]],
    *,
    examples: int,
    steps: int,
    min_steps: int,
) -> None:
    explore(machine, examples=examples, steps=steps)
    report.append((f"engine state machine, {examples} examples", machine.visits))
    assert_everything_was_visited(machine.visits, min_steps)


def test_every_property_holds_in_every_order_of_events(
    report_visits: list[tuple[str, Visits]],
) -> None:
    """The examples in which test_planted_engine_bugs.py has every planted bug noticed, most of them
    within a tenth."""
    run(counted_machine(), report_visits, examples=EXAMPLES, steps=STEPS, min_steps=10_000)


@pytest.mark.sweep
@pytest.mark.timeout(3600)
def test_every_property_holds_for_much_longer(report_visits: list[tuple[str, Visits]]) -> None:
    run(counted_machine(), report_visits, examples=3000, steps=100, min_steps=200_000)
