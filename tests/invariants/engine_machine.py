"""A state machine that drives an EngineCore as clients, executor and clock could, in any order.

After every rule: every invariant (the engine's strict mode), the gauges against a recount, and
what clients received against the oracle's solo runs. Each assertion names its property.
"""

from __future__ import annotations

from random import Random
from typing import Any, ClassVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.invariants.engine_harness import QUEUE_TIMEOUT, Harness
from tests.invariants.engine_oracle import Promise, Visits

# A configuration or a request is drawn from one number of hypothesis: to draw its 13 fields each
# took as long as all that the engine and its checks do. Below 2**24 hypothesis draws evenly.
SEEDS = st.integers(0, 2**24 - 1)
# How much of the search CI has: what every planted bug must be noticed in.
EXAMPLES, STEPS = 400, 60
# Of each group; None sees all.
WINDOWS: tuple[tuple[int | None, ...], ...] = (
    *((None,),) * 4,
    *((None, None), (None, 2), (None, 5), (3,), (7,), (None, 1, 4)),
)


def config_of(seed: int) -> dict[str, Any]:
    """How large an engine is."""
    draw = Random(seed)
    return {
        "block_size": draw.choice((1, 2, 4)),
        "num_blocks": draw.randint(2, 12),
        "windows": draw.choice(WINDOWS),
        "vocab": draw.choice((2, 3)),
        "context": draw.choice((6, 12, 24)),
        "max_seqs": draw.randint(1, 4),
        "budget": draw.choice((1, 2, 3, 5, 8, 64)),
        "logit_rows": draw.choice((1, 2, 4, 64)),
        "max_preemptions": draw.choice((8, 8, 2, 1, 0)),
        "caching": draw.choice((True, True, True, False)),
        "digest": draw.choice(("sha256", "sha256", "constant", "1 byte")),
        "overlaps": draw.choice((True, False)),
        "decode_steps": draw.choice((1, 2, 3, 16)),
        "queue": draw.choice((3, 8, 30)),
    }


def ask_of(seed: int) -> dict[str, Any]:
    """What a client may want, before it is made to fit the example's vocabulary."""
    draw = Random(seed)
    return {
        "kind": draw.choice(("new", "prefix", "repeat", "repeat")),
        "tokens": [draw.randint(0, 2) for _ in range(draw.randint(1, 9))],
        "pick": draw.randint(0, 50),
        "n": draw.choice((1, 1, 1, 2, 3)),
        "max_tokens": draw.choice((0, 1, 2, 4, 7, 12)),
        "min_tokens": draw.choice((0, 0, 1, 3)),
        "ends": draw.choice(("eos", "ignore", "stop", "ignore")),
        "scored": draw.choice((None, None, None, 0, 2)),
        "logprobs": draw.choice((None, 1)),
        "scope": draw.choice((("", "", 0),) * 5 + (("s", "", 0), ("", "a", 1), ("", "a", 2))),
        "seed": draw.randint(0, 1),
        "priority": draw.choice((0, 0, 0, 1, -1)),
        "fits": draw.choice((True,) * 7 + (False,)),
        "poison": draw.choice((False,) * 11 + (True,)),
    }


def is_idle(machine: EngineMachine) -> bool:
    return not machine.harness.in_flight


def may_begin(machine: EngineMachine) -> bool:
    return machine.harness.may_begin


def has_live(machine: EngineMachine) -> bool:
    return bool(machine.harness.clients.live())


class EngineMachine(RuleBasedStateMachine):
    visits: ClassVar[Visits] = Visits()

    @initialize(config=SEEDS)
    def start(self, config: int) -> None:
        self.harness = Harness(config_of(config), self.visits)

    # -- clients -------------------------------------------------------------------------------

    @rule(ask=SEEDS)
    def submit(self, ask: int) -> None:
        self._count("submit")
        self.harness.submit([self.harness.request(ask_of(ask))])

    @rule(first=SEEDS, second=SEEDS)
    def submit_list(self, first: int, second: int) -> None:
        self._count("submit_list")
        requests = [
            self.harness.request(ask_of(first)),
            self.harness.request(ask_of(second), offset=1),
        ]
        self.harness.submit(requests)

    @precondition(lambda self: self.harness.state.running)
    @rule(pick=st.integers(0, 20))
    def submit_a_live_id(self, pick: int) -> None:
        """A request id that is in use is refused, and the one that has it notices nothing."""
        self._count("submit_a_live_id")
        ids = list(self.harness.state.requests)
        self.harness.submit_again(ids[pick % len(ids)])

    @precondition(lambda self: self.harness.promises)
    @rule(pick=st.integers(0, 60), twice=st.booleans())
    def abort(self, pick: int, twice: bool) -> None:
        """Any request ever seen, in any state, once or twice, beside an id never seen."""
        self._count("abort")
        promises = list(self.harness.promises.values())
        promise = promises[pick % len(promises)]
        self.harness.abort(promise)
        if twice:
            self.harness.abort(promise)
        known = self.harness.state.requests
        assert promise.request.request_id not in known, "abort takes effect at once"

    @precondition(has_live)
    @rule(pick=st.integers(0, 20))
    def disconnect(self, pick: int) -> None:
        """A client that goes away during a step is gone from memory when the step is done."""
        self._count("disconnect")
        if self.harness.may_begin:
            self.harness.begin()
        if self.harness.clients.live():
            self.harness.abort(self._pick(pick))
        self.harness.settle()
        assert not self.harness.state.kv.deferred, "nothing stays reserved after the steps"

    @precondition(lambda self: self.harness.speaking())
    @rule(pick=st.integers(0, 20))
    def finish_with_stop(self, pick: int) -> None:
        """The output side met a stop string: the choice ends without a word."""
        self._count("finish_with_stop")
        speaking = self.harness.speaking()
        self.harness.finish(*speaking[pick % len(speaking)])

    # -- the loop ------------------------------------------------------------------------------

    @precondition(may_begin)
    @rule()
    def step(self) -> None:
        self._count("step")
        self.harness.step()

    @precondition(may_begin)
    @rule(count=st.integers(2, 9))
    def steps(self, count: int) -> None:
        self._count("steps")
        for _ in range(count):
            self.harness.step()

    @precondition(lambda self: may_begin(self) and has_live(self))
    @rule()
    def begin_step(self) -> None:
        """What follows happens while the step is in flight; it may be the second."""
        self._count("begin_step")
        self.harness.begin()

    @precondition(lambda self: not is_idle(self))
    @rule()
    def end_step(self) -> None:
        self._count("end_step")
        self.harness.end()

    @precondition(lambda self: may_begin(self) and has_live(self))
    @rule(point=st.sampled_from(("forward", "device", "sample", "result")))
    def fail_a_step(self, point: str) -> None:
        """The executor raises: before, in the midst of, or after its effects.

        Where it overlaps, what it raises late may belong to a step that was in flight before.
        """
        self._count("fail_a_step")
        self.harness.executor.fail_at = point
        self.harness.step()
        self.harness.executor.fail_at = ""

    # -- the world -----------------------------------------------------------------------------

    @precondition(lambda self: self.harness.state.running)
    @rule(pick=st.integers(0, 10))
    def force_preemption(self, pick: int) -> None:
        self._count("force_preemption")
        self.harness.force_preemption(pick)

    @rule(
        event=st.sampled_from(("let_time_pass", "reset_prefix_cache")),
        seconds=st.sampled_from((1.0, 1.0, 11.0, QUEUE_TIMEOUT + 1)),
    )
    def happen(self, event: str, seconds: float) -> None:
        """What comes from nobody: one rule, so that the others come more often."""
        self._count(event)
        if event == "let_time_pass":
            self.harness.now += seconds
        else:
            self.harness.reset_prefix_cache()

    @precondition(lambda self: not self.harness.is_drained and len(self.harness.promises) > 12)
    @rule()
    def drain(self) -> None:
        self._count("drain")
        self.harness.drain()

    # -- after every rule ----------------------------------------------------------------------

    @invariant()
    def books_balance(self) -> None:
        if hasattr(self, "harness"):
            self.harness.checks.check()

    def teardown(self) -> None:
        if hasattr(self, "harness"):
            self.harness.run_to_the_end()

    def _count(self, rule_name: str) -> None:
        self.visits.rules[rule_name] += 1

    def _pick(self, pick: int) -> Promise:
        live = self.harness.clients.live()
        return live[pick % len(live)]


def counted_machine() -> type[EngineMachine]:
    """A machine with visit counts of its own."""
    return type("CountedMachine", (EngineMachine,), {"visits": Visits()})


def explore(machine: type[EngineMachine], *, examples: int, steps: int) -> None:
    """Runs the machine from a fixed seed; the first failure is raised, as it was found."""
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            derandomize=True,
            database=None,
            deadline=None,
            phases=(Phase.generate,),
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )
