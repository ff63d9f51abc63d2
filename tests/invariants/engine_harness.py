"""One engine, its fake executor, its clients and its clock, and what can be done to them."""

from __future__ import annotations

import logging
from typing import Any

from server.engine.core import EngineCore
from server.engine.engine_config import SchedulerConfig
from server.engine.events import EngineFrame
from server.engine.prefix_cache import sha256_digest
from server.engine.request import EngineError, EngineRequest
from server.engine.step import StepInFlight
from tests.engine.fake_executor import FakeExecutor, kv_spec
from tests.invariants.engine_asks import Asks, expected_refusal
from tests.invariants.engine_checks import EngineChecks
from tests.invariants.engine_clients import Clients
from tests.invariants.engine_decisions import Decisions
from tests.invariants.engine_oracle import Choice, Promise, Visits, solo_run

QUEUE_TIMEOUT = 30.0
DIGESTS = {
    "sha256": sha256_digest,
    "constant": lambda _: b"",
    "1 byte": lambda data: sha256_digest(data)[:1],
}


class Harness:
    def __init__(self, config: dict[str, Any], visits: Visits) -> None:
        logging.getLogger("server.engine.core").setLevel(logging.CRITICAL + 1)
        self.config = config
        self.visits = visits
        self.now = 0.0
        spec = kv_spec(config["num_blocks"], config["block_size"], config["windows"])
        self.eos = (config["vocab"] - 1,)
        self.executor = FakeExecutor(
            spec,
            vocab=config["vocab"],
            eos_token_ids=self.eos,
            poison_tokens=(config["vocab"],),
            overlaps=config["overlaps"],
            decode_steps=config["decode_steps"],
        )
        self.core = EngineCore(
            self.executor,
            spec,
            self._limits(),
            prefix_caching=config["caching"],
            clock=lambda: self.now,
            strict=True,
            digest=DIGESTS[config["digest"]],
        )
        self.state = self.core.scheduler.state
        self.clients = Clients(config["block_size"], visits)
        self.promises = self.clients.promises
        turns = self.core.scheduler.turns
        self.decisions = Decisions(config, self.state, turns, self.executor, self.promises, visits)
        self.asks = Asks(config)
        self.checks = EngineChecks(config, self.core, self.executor, self.clients, visits)
        self.in_flight: list[StepInFlight] = []
        self.num_void = 0  # of those, followed a step that failed
        self.is_drained = False
        self.num_overrun = 0  # tokens after stop strings, of which no frame has told yet
        self.best_computed: dict[tuple[str, int], int] = {}
        self.steps_without_progress = 0
        self.ended_before = 0

    def _limits(self) -> SchedulerConfig:
        config = self.config
        return SchedulerConfig(
            max_num_seqs=config["max_seqs"],
            max_num_batched_tokens=config["budget"],
            max_model_len=config["context"],
            max_logit_rows=config["logit_rows"],
            max_queued_requests=config["queue"],
            max_queued_tokens=1000,
            queue_timeout_s=QUEUE_TIMEOUT,
            max_preemptions=config["max_preemptions"],
            eos_token_ids=self.eos,
        )

    # -- clients -------------------------------------------------------------------------------

    def request(self, ask: dict[str, Any], offset: int = 0) -> EngineRequest:
        return self.asks.request(ask, f"r{self.clients.num_submitted + offset}")

    def submit(self, requests: list[EngineRequest]) -> None:
        code = self._expected_refusal(requests)
        self.core.submit(requests)
        ids = tuple(request.request_id for request in requests)
        if code:
            self.clients.expected_refusals.append((ids, code))
            self.clients.note_submission(len(ids), refused=len(ids))
            self.visits.events[f"refused {code}"] += 1
            assert not any(i in self.state.requests for i in ids), "refused is never queued"
            return
        self.clients.expected_accepts.append(ids)
        for offset, request in enumerate(requests):
            solo = [
                solo_run(
                    request.prompt_token_ids, request.sampling, i, self.eos, self.config["vocab"]
                )
                for i in range(request.n)
            ]
            self.promises[request.request_id] = Promise(
                request,
                arrival=self.clients.num_submitted + offset,
                arrival_time=self.now,
                deadline=self.now + QUEUE_TIMEOUT,
                choices=[Choice(run) for run in solo],
            )
        self.clients.note_submission(len(ids))

    def _expected_refusal(self, requests: list[EngineRequest]) -> str:
        if self.is_drained:
            return EngineError.SHUTTING_DOWN
        queued = sum(not self.promises[i].was_scheduled for i in self.state.requests)
        return expected_refusal(self.config, requests, queued)

    def abort(self, promise: Promise) -> None:
        promise.was_aborted = promise.was_aborted or promise.is_live
        self.core.abort([promise.request.request_id, "never seen"])

    def submit_again(self, request_id: str) -> None:
        self.core.submit([self.promises[request_id].request])
        code = EngineError.SHUTTING_DOWN if self.is_drained else EngineError.INTERNAL
        self.clients.expected_refusals.append(((request_id,), code))
        self.clients.note_submission(1, refused=1)

    def finish(self, promise: Promise, index: int) -> None:
        """Its stop string was complete one token ago, where it has said two."""
        taken = max(1, len(promise.choices[index].delivered) - 1)
        self.num_overrun += len(promise.choices[index].delivered) - taken
        self.core.finish(promise.request.request_id, index, taken)
        promise.choices[index].outcome = "silent"
        self.clients.num_ended += 1
        self.core.finish(promise.request.request_id, index, taken)
        self.core.finish("never seen", 0, 0)

    # -- stepping ------------------------------------------------------------------------------

    def step(self) -> None:
        """What the core's own loop does in one turn."""
        while self.may_begin and self.begin():
            continue
        if self.in_flight:
            self.end()
        elif self.state.outputs:
            self.observe(self.state.outputs.flush())

    @property
    def may_begin(self) -> bool:
        return len(self.in_flight) < self.core.max_in_flight

    def settle(self) -> None:
        """Ends what is in flight."""
        while self.in_flight:
            self.end()

    def observe(self, frame: EngineFrame) -> None:
        self.clients.now = self.now
        self.clients.observe(frame)

    def begin(self) -> bool:
        """Whether there was something to compute."""
        could_run = bool(self._runnable()) and not self.in_flight
        beats = self.core.gauges().heartbeat
        step = self.core.begin_step()
        violations = self.executor.violations
        assert not violations, f"a row reads and writes its own slots only: {violations}"
        assert self.core.gauges().heartbeat == beats + 1, "the heartbeat advances with every step"
        if step is None:
            assert not could_run, "no stall: while a request is live, a step computes something"
            return False
        self.in_flight.append(step)
        self.decisions.check_plan(step, self.now)
        self.visits.events["two in flight"] += len(self.in_flight) > 1
        return True

    def end(self) -> None:
        """Ends the oldest step in flight."""
        step = self.in_flight.pop(0)
        device = self.executor.every_step.pop(
            step.plan.step_id, None
        )  # None: raised before any effect
        scheduled = self.state.in_flight[step.plan.step_id]
        writes = [
            (row.sequence, row.sequence.request.namespace, row.chunk, row.row) for row in scheduled
        ]
        failures = self.core.gauges().failed_steps
        in_void = self.num_void > 0
        in_step = [(row.sequence.request.id, row.is_current) for row in scheduled]
        frame = self.core.end_step(step)
        failed = self.core.gauges().failed_steps > failures
        self.num_void = len(self.in_flight) if failed else max(0, self.num_void - 1)
        is_void = in_void
        assert not (failed and in_void), "what followed a failed step is not blamed for it"
        if not is_void:
            self._note_failures({i for i, is_current in in_step if failed or is_current}, failed)
        self.visits.events["step void"] += is_void
        after = {} if device is None else device.after
        for _, namespace, chunk, row in writes:
            if row in after:
                at = after[row]
                failed_or_void = failed or is_void
                self.decisions.note_writes(
                    namespace, chunk, at.tables, at.token_ids, failed_or_void
                )
        for _, destination in step.plan.block_copies:
            self.visits.events["block copied"] += 1
            if destination in self.decisions.contents.by_block and failed:
                self.decisions.contents.overwrite(destination, None)
        self.observe(frame)
        self._check_waste(step, in_step, frame)
        self._check_progress(failed or is_void)

    def _check_waste(
        self, step: StepInFlight, in_step: list[tuple[str, bool]], frame: EngineFrame
    ) -> None:
        """Tokens that nobody gets are those of rows that ended or moved, and are counted."""
        assert frame.stats is not None
        delivered = sum(len(output.token_ids) for output in frame.choices)
        chosen = sum(row.samples for row in step.plan.rows) * step.plan.num_decode_steps
        stale = sum(
            row.samples and not is_current
            for row, (_, is_current) in zip(step.plan.rows, in_step, strict=True)
        )
        on_the_way = frame.stats.num_discarded_tokens - self.num_overrun
        assert 0 <= on_the_way <= max(stale, chosen - delivered)
        self.visits.events["several tokens a row"] += step.plan.num_decode_steps > 1
        self.num_overrun = 0
        self.visits.events["token dropped"] += frame.stats.num_discarded_tokens

    def _note_failures(self, request_ids: set[str], failed: bool) -> None:
        for request_id in request_ids:
            promise = self.promises[request_id]
            promise.num_failed_steps = promise.num_failed_steps + 1 if failed else 0
        self.visits.events["step failed"] += failed

    def _check_progress(self, failed: bool) -> None:
        """The most that each sequence ever had computed keeps growing while anything is live."""
        rose = failed or self.clients.num_ended > self.ended_before
        self.ended_before = self.clients.num_ended
        for sequence in self.state.running:
            key = (sequence.request.id, sequence.choice)
            if sequence.num_committed_tokens > self.best_computed.get(key, 0):
                self.best_computed[key] = sequence.num_committed_tokens
                rose = True
        self.steps_without_progress = 0 if rose else self.steps_without_progress + 1
        known = sum(s.num_tokens for r in self.state.requests.values() for s in r.live_sequences)
        bound = self.config["max_seqs"] + 2 + -(-known // self.config["budget"])
        assert self.steps_without_progress <= bound, (
            f"progress: something new is computed within {bound} steps"
        )

    def run_to_the_end(self) -> None:
        """Everything accepted ends, in a bounded number of steps, and leaves nothing behind."""
        self.settle()
        self.drain()
        bound = 60 + 60 * sum(len(promise.choices) for promise in self.clients.live())
        for _ in range(bound):
            if not self.core.has_work:
                break
            live = len(self.state.requests)
            self.step()
            assert len(self.state.requests) <= live, "draining never adds a live request"
        assert not self.core.has_work, f"a drained engine is empty within {bound} steps"
        assert not self.clients.live(), "every accepted choice ends in exactly one outcome"
        self.checks.check_nothing_is_left()

    # -- the world -----------------------------------------------------------------------------

    def force_preemption(self, pick: int) -> None:
        sequence = self.state.running[pick % len(self.state.running)]
        is_protected = sequence.num_preemptions >= self.config["max_preemptions"]
        self.decisions.is_forced = True
        done = self.core.scheduler.preempt(sequence.request.id, sequence.choice)
        self.decisions.is_forced = False
        assert done is not is_protected, "only a protected sequence keeps its row"
        self.core.check()
        self.steps_without_progress = 0

    def reset_prefix_cache(self) -> None:
        tables = [[list(t) for t in sequence.block_tables] for sequence in self.state.running]
        self.core.reset_prefix_cache()
        assert not self.state.kv.cache.entries, "a reset empties the cache"
        assert tables == [
            [list(t) for t in sequence.block_tables] for sequence in self.state.running
        ], "a reset leaves running requests what they hold"

    def drain(self) -> None:
        self.core.drain()
        self.is_drained = True

    # -- choosing ------------------------------------------------------------------------------

    def _runnable(self) -> list[str]:
        """Requests that the engine still knows and that the clock has not ended."""
        return [
            i
            for i in self.state.requests
            if self.promises[i].was_scheduled or self.now <= self.promises[i].deadline
        ]

    def speaking(self) -> list[tuple[Promise, int]]:
        """Choices that are live and have delivered a token."""
        return [
            (promise, index)
            for promise in self.clients.live()
            if promise.request.request_id in self.state.requests
            for index, choice in enumerate(promise.choices)
            if choice.delivered and not choice.outcome
        ]
