"""The engine under every order of events that hypothesis can think of."""

from __future__ import annotations

import pytest
from engine_machine import EngineMachine
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from oracle import Visits

RULES = (
    "submit",
    "submit_list",
    "submit_a_live_id",
    "abort",
    "disconnect",
    "finish_with_stop",
    "step",
    "steps",
    "begin_step",
    "end_step",
    "fail_a_step",
    "poll_idle",
    "force_preemption",
    "let_time_pass",
    "reset_prefix_cache",
    "drain",
)
STATES = (
    "waiting",
    "reserved",
    "running",
    "preempted",
    "finished_stop",
    "finished_length",
    "finished_abort",
    "finished_error",
)
EVENTS = (
    "prefix hit",
    "preempted",
    "block copied",
    "fork or resumed choice",
    "mixed step",
    "step failed",
    "error NON_FINITE",
    "error INTERNAL",
    "error QUEUE_TIMEOUT",
    "refused CAPACITY",
    "refused CONTEXT_LENGTH",
    "refused QUEUE_FULL",
    "refused SHUTTING_DOWN",
)


def explore(
    machine: type[EngineMachine], *, examples: int, steps: int, shrink: bool = True
) -> None:
    phases = (Phase.explicit, Phase.generate, Phase.shrink) if shrink else (Phase.generate,)
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            derandomize=True,
            database=None,
            deadline=None,
            phases=phases,
            suppress_health_check=list(HealthCheck),
        ),
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


def counted_machine() -> type[EngineMachine]:
    """A machine with visit counts of its own."""
    return type("CountedMachine", (EngineMachine,), {"visits": Visits()})


def test_every_property_holds_in_every_order_of_events(request: pytest.FixtureRequest) -> None:
    machine = counted_machine()
    explore(machine, examples=1100, steps=50)
    request.config.stash.setdefault(VISITS, []).append(machine.visits)
    assert_everything_was_visited(machine.visits, 50_000)


VISITS: pytest.StashKey[list[Visits]] = pytest.StashKey()
