"""A state machine that drives an EngineCore as clients, executor and clock could, in any order.

After every rule: the whole ledger (the engine's strict mode), the gauges against a recount, and
what clients received against the oracle's solo runs. Each assertion names its property.
"""

from __future__ import annotations

from typing import Any, ClassVar

from fake_executor import FakeExecutor, kv_spec, model_logprob
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from oracle import (
    BlockContents,
    Choice,
    Promise,
    Visits,
    fingerprint,
    solo_run,
    unpack_own_logprobs,
)

from server.engine.core import EngineCore, StepInFlight
from server.engine.events import ChoiceOutput, EngineFrame, PromptOutput
from server.engine.kv_cache_manager import PrefixHit
from server.engine.prefix_cache import sha256_digest
from server.engine.request import EngineLimits, EngineRequest, SamplingParams
from server.engine.sequence import Sequence, SequenceState

QUEUE_TIMEOUT = 30.0
DIGESTS = {
    "sha256": sha256_digest,
    "constant": lambda _: b"",
    "1 bit": lambda d: sha256_digest(d)[:1],
}


@st.composite
def configs(draw: st.DrawFn) -> dict[str, Any]:
    groups = draw(st.sampled_from((1, 1, 1, 2)))
    return {
        "block_size": draw(st.sampled_from((1, 2, 4))),
        "num_blocks": draw(st.integers(2, 12)),
        "num_groups": groups,
        "vocab": draw(st.sampled_from((2, 3))),
        "context": draw(st.sampled_from((6, 12, 24))),
        "max_seqs": draw(st.integers(1, 4)),
        "budget": draw(st.sampled_from((1, 2, 3, 5, 8, 64))),
        "logit_rows": draw(st.sampled_from((1, 2, 4, 64))),
        "max_preemptions": draw(st.sampled_from((8, 8, 2, 1, 0))),
        "caching": draw(st.sampled_from((True, True, True, False))),
        "digest": draw(st.sampled_from(("sha256", "sha256", "constant", "1 bit"))),
        "queue": draw(st.sampled_from((2, 6, 30))),
    }


@st.composite
def asks(draw: st.DrawFn) -> dict[str, Any]:
    """What a client may want, before it is made to fit the example's vocabulary."""
    return {
        "kind": draw(st.sampled_from(("new", "prefix", "repeat", "repeat"))),
        "tokens": draw(st.lists(st.integers(0, 2), min_size=1, max_size=9)),
        "pick": draw(st.integers(0, 50)),
        "n": draw(st.sampled_from((1, 1, 1, 2, 3))),
        "max_tokens": draw(st.sampled_from((0, 1, 2, 4, 7, 12))),
        "min_tokens": draw(st.sampled_from((0, 0, 1, 3))),
        "ends": draw(st.sampled_from(("eos", "ignore", "stop", "ignore"))),
        "scored": draw(st.sampled_from((None, None, 0, 2))),
        "logprobs": draw(st.sampled_from((None, 1))),
        "scope": draw(
            st.sampled_from((("", "", 0),) * 5 + (("s", "", 0), ("", "a", 1), ("", "a", 2)))
        ),
        "seed": draw(st.integers(0, 1)),
        "priority": draw(st.sampled_from((0, 0, 0, 1, -1))),
        "fits": draw(st.sampled_from((True,) * 7 + (False,))),
        "poison": draw(st.sampled_from((False,) * 11 + (True,))),
    }


class EngineMachine(RuleBasedStateMachine):
    visits: ClassVar[Visits] = Visits()

    # -- setting up ----------------------------------------------------------------------------

    @initialize(config=configs())
    def start(self, config: dict[str, Any]) -> None:
        self.config = config
        self.now = 0.0
        spec = kv_spec(config["num_blocks"], config["block_size"], config["num_groups"])
        self.eos = (config["vocab"] - 1,)
        self.executor = FakeExecutor(
            spec,
            vocab=config["vocab"],
            eos_token_ids=self.eos,
            poison_tokens=(config["vocab"],),
        )
        self.limits = EngineLimits(
            max_num_seqs=config["max_seqs"],
            max_num_batched_tokens=config["budget"],
            max_model_len=config["context"],
            max_logit_rows=config["logit_rows"],
            max_queued_requests=config["queue"],
            max_queued_tokens=1000,
            queue_timeout_s=QUEUE_TIMEOUT,
            prefix_caching=config["caching"],
            max_preemptions=config["max_preemptions"],
            eos_token_ids=self.eos,
        )
        self.core = EngineCore(
            self.executor,
            spec,
            self.limits,
            clock=lambda: self.now,
            strict=True,
            digest=DIGESTS[config["digest"]],
        )
        self.roster = self.core.scheduler.roster
        self.promises: dict[str, Promise] = {}
        self.prompts: list[tuple[int, ...]] = []
        self.contents = BlockContents()
        self.in_flight: StepInFlight | None = None
        self.is_drained = False
        self.expected_accepts: list[tuple[str, ...]] = []
        self.expected_refusals: list[tuple[tuple[str, ...], str]] = []
        self.counts = {"submitted": 0, "refused": 0, "ended": 0}
        self.best_computed: dict[tuple[str, int], int] = {}
        self.steps_without_progress = 0
        self.ended_before = 0
        self.forcing = False
        self._watch_admissions()
        self._watch_preemptions()

    def _watch_admissions(self) -> None:
        admit = self.roster.kv.admit

        def watched(sequence: Sequence, hit: PrefixHit, num_tokens: int) -> bool:
            self._check_turn(sequence)
            self._check_hit(sequence, hit)
            return admit(sequence, hit, num_tokens)

        self.roster.kv.admit = watched  # type: ignore[method-assign]

    def _watch_preemptions(self) -> None:
        preempt = self.roster.preempt

        def watched(sequence: Sequence, *, counts: bool = True) -> None:
            if counts and not self.forcing:
                self._check_victim(sequence)
            preempt(sequence, counts=counts)
            self.visits.events["preempted"] += counts

        self.roster.preempt = watched  # type: ignore[method-assign]

    # -- clients -------------------------------------------------------------------------------

    @rule(ask=asks())
    def submit(self, ask: dict[str, Any]) -> None:
        self._count("submit")
        self._submit([self._request(ask)])

    @rule(first=asks(), second=asks())
    def submit_list(self, first: dict[str, Any], second: dict[str, Any]) -> None:
        self._count("submit_list")
        self._submit([self._request(first), self._request(second, offset=1)])

    @precondition(lambda self: self.roster.running)
    @rule(pick=st.integers(0, 20))
    def submit_a_live_id(self, pick: int) -> None:
        """A request id that is in use is refused, and the one that has it notices nothing."""
        self._count("submit_a_live_id")
        ids = list(self.roster.requests)
        request = self.promises[ids[pick % len(ids)]].request
        self.core.submit([request])
        code = "SHUTTING_DOWN" if self.is_drained else "INTERNAL"
        self.expected_refusals.append(((request.request_id,), code))
        self._note_submission(1, refused=1)

    @precondition(lambda self: self.promises)
    @rule(pick=st.integers(0, 60), twice=st.booleans())
    def abort(self, pick: int, twice: bool) -> None:
        """Any request ever seen, in any state, once or twice, beside an id never seen."""
        self._count("abort")
        promise = list(self.promises.values())[pick % len(self.promises)]
        self._abort(promise)
        if twice:
            self._abort(promise)
        assert promise.request.request_id not in self.roster.requests, "abort takes effect at once"

    @precondition(lambda self: self._live())
    @rule(pick=st.integers(0, 20))
    def disconnect(self, pick: int) -> None:
        """A client that goes away during a step is gone from memory when the step is done."""
        self._count("disconnect")
        if self.in_flight is None:
            self._begin()
        if self._live():
            self._abort(self._pick(pick))
        if self.in_flight is not None:
            self._end()
        assert not self.roster.kv.deferred, "nothing stays reserved after the step in flight"

    @precondition(lambda self: self._speaking())
    @rule(pick=st.integers(0, 20))
    def finish_with_stop(self, pick: int) -> None:
        """The output side met a stop string: the choice ends without a word."""
        self._count("finish_with_stop")
        speaking = self._speaking()
        promise, index = speaking[pick % len(speaking)]
        self.core.finish(promise.request.request_id, index)
        promise.choices[index].outcome = "silent"
        self.counts["ended"] += 1
        self.core.finish(promise.request.request_id, index)
        self.core.finish("never seen", 0)

    # -- the loop ------------------------------------------------------------------------------

    @precondition(lambda self: self.in_flight is None)
    @rule()
    def step(self) -> None:
        self._count("step")
        self._step()

    @precondition(lambda self: self.in_flight is None)
    @rule(count=st.integers(2, 9))
    def steps(self, count: int) -> None:
        self._count("steps")
        for _ in range(count):
            self._step()

    @precondition(lambda self: self.in_flight is None and self._live())
    @rule()
    def begin_step(self) -> None:
        """What follows happens while the step is in flight."""
        self._count("begin_step")
        self._begin()

    @precondition(lambda self: self.in_flight is not None)
    @rule()
    def end_step(self) -> None:
        self._count("end_step")
        self._end()

    @precondition(lambda self: self.in_flight is None and self._live())
    @rule(point=st.sampled_from(("forward", "sample", "result")))
    def fail_a_step(self, point: str) -> None:
        """The executor raises: before, in the midst of, or after its effects."""
        self._count("fail_a_step")
        self.executor.fail_at = point
        self._step()
        self.executor.fail_at = ""

    # -- the world -----------------------------------------------------------------------------

    @precondition(lambda self: self.roster.running)
    @rule(pick=st.integers(0, 10))
    def force_preemption(self, pick: int) -> None:
        self._count("force_preemption")
        sequence = self.roster.running[pick % len(self.roster.running)]
        is_protected = sequence.num_preemptions >= self.limits.max_preemptions
        self.forcing = True
        done = self.core.scheduler.preempt(sequence.request.id, sequence.choice)
        self.forcing = False
        assert done is not is_protected, "only a protected sequence keeps its row"
        self.core.check()
        self.steps_without_progress = 0

    @rule(
        event=st.sampled_from(("let_time_pass", "reset_prefix_cache", "poll_idle")),
        seconds=st.sampled_from((1.0, 1.0, 11.0, QUEUE_TIMEOUT + 1)),
    )
    def happen(self, event: str, seconds: float) -> None:
        """What comes from nobody: one rule, so that the others come more often."""
        self._count(event)
        if event == "let_time_pass":
            self.now += seconds
        elif event == "reset_prefix_cache":
            self._reset_prefix_cache()
        else:
            before = self.core.gauges().heartbeat
            self.core.poll_idle()
            assert self.core.gauges().heartbeat == before + 1, "the heartbeat advances while idle"

    def _reset_prefix_cache(self) -> None:
        tables = [[list(t) for t in sequence.block_tables] for sequence in self.roster.running]
        self.core.reset_prefix_cache()
        assert not self.roster.kv.cache.entries, "a reset empties the cache"
        assert tables == [
            [list(t) for t in sequence.block_tables] for sequence in self.roster.running
        ], "a reset leaves running requests what they hold"

    @precondition(lambda self: not self.is_drained and len(self.promises) > 12)
    @rule()
    def drain(self) -> None:
        self._count("drain")
        self.core.drain()
        self.is_drained = True

    # -- after every rule ----------------------------------------------------------------------

    @invariant()
    def books_balance(self) -> None:
        if not hasattr(self, "core"):
            return
        self.core.check()
        self._check_gauges()
        self._check_counts()
        for request in self.roster.requests.values():
            for sequence in request.sequences:
                self.visits.states[sequence.state.value] += 1
                bound = self.limits.max_preemptions
                assert sequence.num_preemptions <= bound, "preemptions are bounded per sequence"

    def teardown(self) -> None:
        """Everything accepted ends, in a bounded number of steps, and leaves nothing behind."""
        if not hasattr(self, "core"):
            return
        if self.in_flight is not None:
            self._end()
        self.core.drain()
        self.is_drained = True
        bound = 60 + 60 * sum(len(p.choices) for p in self._live())
        for _ in range(bound):
            if not self.core.has_work:
                break
            live = len(self.roster.requests)
            self._step()
            assert len(self.roster.requests) <= live, "draining never adds a live request"
        assert not self.core.has_work, f"a drained engine is empty within {bound} steps"
        assert not self._live(), "every accepted choice ends in exactly one outcome"
        self._check_nothing_is_left()

    def _check_nothing_is_left(self) -> None:
        gauges, pool = self.core.gauges(), self.roster.kv.pool
        held = [pool.num_references(block) for block in range(pool.num_blocks)]
        assert not any(held), "after all requests end no block is held"
        assert gauges.blocks_cached + gauges.blocks_free == gauges.blocks_total
        assert not self.roster.requests
        assert not self.roster.running
        assert not self.roster.waiting
        assert not self.roster.in_flight
        assert not self.roster.copies, "no copy waits for a fork that ended"
        assert not self.roster.suspects, "no suspicion outlives its request"
        assert not self.roster.kv.deferred
        assert self.roster.rows.num_free == self.config["max_seqs"]
        assert self.roster.waiting.num_tokens == 0
        assert self.roster.waiting.num_new == 0
        self.core.reset_prefix_cache()
        assert self.core.gauges().blocks_free == gauges.blocks_total

    # -- submitting ----------------------------------------------------------------------------

    def _request(self, ask: dict[str, Any], offset: int = 0) -> EngineRequest:
        vocab = self.config["vocab"]
        tokens = tuple(token % vocab for token in ask["tokens"])
        if self.prompts and ask["kind"] != "new":
            earlier = self.prompts[ask["pick"] % len(self.prompts)]
            tokens = earlier if ask["kind"] == "repeat" else (*earlier[: ask["pick"] // 3], *tokens)
        if ask["poison"]:
            tokens = (*tokens, vocab)
        room = min(self.config["context"], self._pool_tokens()) if ask["fits"] else 26
        tokens = tokens[: max(1, room - ask["max_tokens"] // 2)]
        max_tokens = min(ask["max_tokens"], room - len(tokens))
        self.prompts.append(tokens[:12])
        salt, adapter, version = ask["scope"]
        sampling = SamplingParams(
            seed=ask["seed"],
            max_tokens=max_tokens,
            min_tokens=min(ask["min_tokens"], max_tokens),
            stop_token_ids=(0,) if ask["ends"] == "stop" else (),
            ignore_eos=ask["ends"] == "ignore",
            logprobs=ask["logprobs"],
            prompt_logprobs=ask["scored"],
        )
        return EngineRequest(
            request_id=f"r{self.counts['submitted'] + offset}",
            prompt_token_ids=tokens,
            sampling=sampling,
            n=min(ask["n"], self.config["max_seqs"]) if ask["fits"] else ask["n"],
            priority=ask["priority"],
            adapter_id=adapter,
            adapter_version=version,
            cache_salt=salt,
        )

    def _pool_tokens(self) -> int:
        blocks = self.config["num_blocks"] // self.config["num_groups"]
        return int(blocks * self.config["block_size"])

    def _submit(self, requests: list[EngineRequest]) -> None:
        code = self._expected_refusal(requests)
        self.core.submit(requests)
        ids = tuple(request.request_id for request in requests)
        if code:
            self.expected_refusals.append((ids, code))
            self._note_submission(len(ids), refused=len(ids))
            self.visits.events[f"refused {code}"] += 1
            assert not any(i in self.roster.requests for i in ids), "refused is never queued"
            return
        self.expected_accepts.append(ids)
        for offset, request in enumerate(requests):
            solo = [
                solo_run(
                    request.prompt_token_ids, request.sampling, i, self.eos, self.config["vocab"]
                )
                for i in range(request.n)
            ]
            self.promises[request.request_id] = Promise(
                request,
                arrival=self.counts["submitted"] + offset,
                arrival_time=self.now,
                deadline=self.now + QUEUE_TIMEOUT,
                choices=[Choice(run) for run in solo],
            )
        self._note_submission(len(ids))

    def _note_submission(self, count: int, refused: int = 0) -> None:
        self.counts["submitted"] += count
        self.counts["refused"] += refused

    def _expected_refusal(self, requests: list[EngineRequest]) -> str:
        """By arithmetic of its own: what can never run, then what finds the queue full."""
        config = self.config
        if self.is_drained:
            return "SHUTTING_DOWN"
        for request in requests:
            total = len(request.prompt_token_ids) + request.sampling.max_tokens
            blocks = config["num_groups"] * -(-total // config["block_size"])
            if request.n > config["max_seqs"]:
                return "CAPACITY"
            if total > config["context"]:
                return "CONTEXT_LENGTH"
            if blocks > config["num_blocks"]:
                return "CAPACITY"
        queued = sum(not self.promises[i].was_scheduled for i in self.roster.requests)
        if len(requests) > config["queue"]:
            return "CAPACITY"
        return "QUEUE_FULL" if queued + len(requests) > config["queue"] else ""

    def _abort(self, promise: Promise) -> None:
        promise.was_aborted = promise.was_aborted or promise.is_live
        self.core.abort([promise.request.request_id, "never seen"])

    # -- stepping ------------------------------------------------------------------------------

    def _step(self) -> None:
        self._begin()
        if self.in_flight is not None:
            self._end()
            return
        frame = self.core._roster.outbox.collect() if self.core._roster.outbox else None
        if frame is not None:
            self._observe(frame)

    def _begin(self) -> None:
        could_run = bool(self._runnable())
        beats = self.core.gauges().heartbeat
        self.in_flight = self.core.begin_step()
        violations = self.executor.violations
        assert not violations, f"a row reads and writes its own slots only: {violations}"
        assert self.core.gauges().heartbeat == beats + 1, "the heartbeat advances with every step"
        if could_run and self.in_flight is None:
            raise AssertionError("no stall: while a request is live, a step computes something")
        if self.in_flight is not None:
            self._check_plan(self.in_flight)

    def _end(self) -> None:
        step, self.in_flight = self.in_flight, None
        assert step is not None
        scheduled = self.roster.in_flight[step.plan.step_id]
        writes = [
            (row.sequence, tuple(row.sequence.request.namespaces), row.chunk, row.row)
            for row in scheduled
        ]
        failures = self.core.gauges().failed_steps
        in_step = [(row.sequence.request.id, row.is_current) for row in scheduled]
        tables = {row: [list(t) for t in r.tables] for row, r in self.executor.rows.items()}
        known = {row: tuple(r.token_ids) for row, r in self.executor.rows.items()}
        frame = self.core.end_step(step)
        failed = self.core.gauges().failed_steps > failures
        self._note_failures({i for i, is_current in in_step if failed or is_current}, failed)
        for _, namespaces, chunk, row in writes:
            if step.plan in self.executor.plans[-1:]:  # else it raised before any effect
                self._note_writes(namespaces, chunk, tables[row], known[row], failed)
        for _, destination in step.plan.block_copies:
            self.visits.events["block copied"] += 1
            if destination in self.contents.by_block and failed:
                self.contents.overwrite(destination, None)
        self._observe(frame)
        self._check_progress(failed)

    def _note_failures(self, request_ids: set[str], failed: bool) -> None:
        for request_id in request_ids:
            promise = self.promises[request_id]
            promise.num_failed_steps = promise.num_failed_steps + 1 if failed else 0
        self.visits.events["step failed"] += failed

    def _note_writes(
        self, namespaces: Any, chunk: Any, tables: Any, tokens: tuple[int, ...], failed: bool
    ) -> None:
        """What each block written in this step holds now: a full prefix, or nothing of use."""
        size = self.config["block_size"]
        for namespace, table in zip(namespaces, tables, strict=True):
            scope = (
                namespace.group,
                namespace.salt,
                namespace.adapter_id,
                namespace.adapter_version,
            )
            for index in range(chunk.start // size, -(-chunk.end // size)):
                end = (index + 1) * size
                is_full = chunk.end >= end and not failed
                content = (scope, tokens[:end]) if is_full else None
                self.contents.overwrite(table[index], content)

    def _check_plan(self, step: StepInFlight) -> None:
        plan, config = step.plan, self.config
        rows = [row.row for row in plan.rows]
        assert len(set(rows)) == len(rows) <= config["max_seqs"], "at most max_num_seqs rows"
        assert plan.num_tokens <= config["budget"], "a step keeps to its token budget"
        assert all(row.num_scheduled_tokens > 0 for row in plan.rows), "no empty chunk"
        logits = sum(row.num_prompt_logits + row.samples for row in plan.rows)
        assert logits <= config["logit_rows"], "a step keeps to max_logit_rows"
        for planned, scheduled in zip(plan.rows, self.roster.in_flight[plan.step_id], strict=True):
            sequence = scheduled.sequence
            promise = self.promises[sequence.request.id]
            generated = sequence.num_tokens - len(promise.request.prompt_token_ids)
            pending = generated < promise.request.sampling.min_tokens
            assert planned.min_tokens_pending == (planned.samples and pending), (
                "end ids are forbidden exactly while fewer than min_tokens were generated"
            )
            assert promise.was_scheduled or self.now <= promise.deadline, (
                "what waited past its deadline is never scheduled"
            )
            promise.was_scheduled = True
            self.visits.events["mixed step"] += len(plan.rows) > 1 and plan.num_tokens > len(rows)
        if any(row.num_computed_tokens and row.choice for row in plan.admitted):
            self.visits.events["fork or resumed choice"] += 1

    def _check_progress(self, failed: bool) -> None:
        """The most that each sequence ever had computed keeps growing while anything is live."""
        rose = failed or self.counts["ended"] > self.ended_before
        self.ended_before = self.counts["ended"]
        for sequence in self.roster.running:
            key = (sequence.request.id, sequence.choice)
            if sequence.num_confirmed_tokens > self.best_computed.get(key, 0):
                self.best_computed[key] = sequence.num_confirmed_tokens
                rose = True
        self.steps_without_progress = 0 if rose else self.steps_without_progress + 1
        known = sum(s.num_tokens for r in self.roster.requests.values() for s in r.live_sequences)
        bound = self.config["max_seqs"] + 2 + -(-known // self.config["budget"])
        assert self.steps_without_progress <= bound, (
            f"progress: something new is computed within {bound} steps"
        )

    # -- what the engine does on the way -------------------------------------------------------

    def _check_turn(self, sequence: Sequence) -> None:
        """Strict order: nothing waiting is overtaken, but for a retry after a failed step."""
        if self.roster.suspects:
            return
        mine = (*self.promises[sequence.request.id].rank, sequence.choice)
        for other in self.roster.waiting:
            rank = (*self.promises[other.request.id].rank, other.choice)
            assert mine <= rank, "the queue is served in order of priority, then arrival"

    def _check_hit(self, sequence: Sequence, hit: PrefixHit) -> None:
        size, kv = self.config["block_size"], self.roster.kv
        request = self.promises[sequence.request.id].request
        tokens = tuple(sequence.token_ids)
        assert hit.num_tokens % size == 0, "a hit is whole blocks"
        assert hit.num_tokens <= len(tokens) - 1, "a hit leaves a token to compute"
        scored = request.sampling.prompt_logprobs is not None and sequence.choice == 0
        assert not (hit.num_tokens and scored), "a scored prompt reads no cached prefix"
        longest = [0] * kv.num_groups
        for group in range(kv.num_groups):
            scope = (group, request.cache_salt, request.adapter_id, request.adapter_version)
            for index, block in enumerate(hit.block_ids[group]):
                content = (scope, tokens[: (index + 1) * size])
                assert self.contents.by_block.get(block) == content, (
                    "a hit is the same prefix under the same salt, adapter and version, "
                    "computed by a completed step"
                )
            for end in range(size, len(tokens), size):
                blocks = self.contents.blocks_with((scope, tokens[:end]))
                if not any(kv.cache.holds(block) for block in blocks):
                    break
                longest[group] = end
        if not scored and self.config["caching"]:
            assert hit.num_tokens == min(longest), "a hit is the longest cached prefix"
        self.visits.events["prefix hit"] += hit.num_tokens > 0

    def _check_victim(self, victim: Sequence) -> None:
        running = self.roster.running
        oldest = min(running, key=lambda s: (self.promises[s.request.id].arrival, s.choice))
        assert victim is not oldest, "the one that arrived first is never preempted"
        assert victim.num_preemptions < self.limits.max_preemptions, "nor is a protected one"

        def rank(s: Sequence) -> tuple[float, int, int]:
            return (*self.promises[s.request.id].rank, s.choice)

        later = [s for s in running if rank(s) > rank(victim) and s is not oldest]
        assert all(s.num_preemptions >= self.limits.max_preemptions for s in later), (
            "the victim is the lowest in priority, then the latest"
        )

    # -- what clients see ----------------------------------------------------------------------

    def _observe(self, frame: EngineFrame) -> None:
        assert [a.request_ids for a in frame.accepted] == self.expected_accepts, "accepted once"
        refused = [(r.request_ids, r.code) for r in frame.refused]
        assert refused == self.expected_refusals, "refused once, whole, with the right code"
        for refusal in frame.refused:
            has_time = refusal.retry_after is not None
            assert has_time == (refusal.code == "QUEUE_FULL"), "a full queue says when to retry"
        self.expected_accepts, self.expected_refusals = [], []
        for prompt in frame.prompts:
            self._observe_prompt(prompt)
        for output in frame.choices:
            self._observe_choice(output)

    def _observe_prompt(self, output: PromptOutput) -> None:
        promise = self.promises[output.request_id]
        if output.logprobs is None:
            assert not promise.prompt_announced, "a prompt is announced once"
            promise.prompt_announced = True
            cached, size = output.num_cached_tokens, self.config["block_size"]
            assert cached % size == 0
            assert cached < len(promise.request.prompt_token_ids), "cached is less than the prompt"
            return
        assert output.first_position == len(promise.prompt_logprobs) + 1, (
            "prompt log-probabilities come in order, none twice"
        )
        promise.prompt_logprobs += unpack_own_logprobs(output.logprobs)

    def _observe_choice(self, output: ChoiceOutput) -> None:
        promise = self.promises[output.request_id]
        choice = promise.choices[output.choice]
        assert not choice.outcome, "after its one outcome a choice is silent"
        choice.delivered += output.token_ids
        assert choice.delivered == choice.solo.token_ids[: len(choice.delivered)], (
            "a choice gets the tokens of its solo run"
        )
        self._observe_logprobs(promise, choice, output)
        if output.finish_reason is not None:
            choice.outcome = output.finish_reason.value
            self.counts["ended"] += 1
            self.visits.states[f"finished_{choice.outcome}"] += 1
            self._check_outcome(promise, choice, output)

    def _observe_logprobs(self, promise: Promise, choice: Choice, output: ChoiceOutput) -> None:
        if not output.token_ids or promise.request.sampling.logprobs is None:
            assert output.logprobs is None, "log-probabilities come only where asked for"
            return
        assert output.logprobs is not None
        before = tuple(choice.delivered[: -len(output.token_ids)])
        prefix = fingerprint((*promise.request.prompt_token_ids, *before))
        token = output.token_ids[0]
        assert unpack_own_logprobs(output.logprobs) == [(token, model_logprob(prefix, token))]

    def _check_outcome(self, promise: Promise, choice: Choice, output: ChoiceOutput) -> None:
        if choice.outcome == "abort":
            assert promise.was_aborted, "only what was aborted ends so"
        elif choice.outcome == "error":
            self._check_error(promise, choice, output)
        else:
            assert choice.outcome == choice.solo.reason, "a choice ends as its solo run does"
            assert choice.delivered == choice.solo.token_ids, "a choice gets all its tokens"
            assert output.stop_token_id == choice.solo.stop_token_id
            if promise.request.sampling.prompt_logprobs is not None and output.choice == 0:
                expected = promise.expected_prompt_logprobs()
                assert promise.prompt_logprobs == expected, "every prompt token is scored once"

    def _check_error(self, promise: Promise, choice: Choice, output: ChoiceOutput) -> None:
        code = output.error_code
        self.visits.events[f"error {code}"] += 1
        if code == "NON_FINITE":
            assert choice.solo.reason == "error", "only the row that was not finite ends"
        elif code == "QUEUE_TIMEOUT":
            assert not promise.was_scheduled, "what was scheduled does not expire"
            assert self.now > promise.deadline, "nothing expires early"
        else:
            assert code == "INTERNAL"
            assert promise.num_failed_steps >= 2, "a failed step is tried once more"

    # -- counting ------------------------------------------------------------------------------

    def _check_gauges(self) -> None:
        gauges, roster = self.core.gauges(), self.roster
        held = {b for s in roster.running for t in s.block_tables for b in t}
        deferred = {b for d in roster.kv.deferred for b in d.block_ids} - held
        assert gauges.blocks_active == len(held), "the gauges are the state, at any moment"
        assert gauges.blocks_reserved == len(deferred)
        total = gauges.blocks_active + gauges.blocks_reserved
        assert total + gauges.blocks_cached + gauges.blocks_free == self.config["num_blocks"]
        states = [s.state for r in roster.requests.values() for s in r.sequences]
        assert gauges.sequences_running == states.count(SequenceState.RUNNING)
        live = gauges.requests_running + gauges.requests_waiting
        assert live == len(roster.requests)
        assert 0 <= gauges.kv_tokens_filled <= gauges.kv_tokens_reserved
        if self.config["num_groups"] == 1:
            assert gauges.kv_tokens_filled == self._filled_slots(), "filled slots are counted once"

    def _filled_slots(self) -> int:
        size = self.config["block_size"]
        filled: dict[int, int] = {}
        for sequence in self.roster.running:
            for index, block in enumerate(sequence.block_tables[0]):
                tokens = min(size, max(0, sequence.num_computed_tokens - index * size))
                filled[block] = max(tokens, filled.get(block, 0))
        return sum(filled.values())

    def _check_counts(self) -> None:
        accepted = self.counts["submitted"] - self.counts["refused"]
        assert accepted == len(self.promises), "submitted is refused plus accepted"
        live = {i for i, promise in self.promises.items() if promise.is_live}
        unsaid = {output.request_id for output in self.roster.outbox.choices}
        assert set(self.roster.requests) | unsaid >= live, "what is live is known to the engine"
        assert set(self.roster.requests) <= live, "what has ended is forgotten"

    # -- choosing ------------------------------------------------------------------------------

    def _count(self, rule_name: str) -> None:
        self.visits.rules[rule_name] += 1

    def _live(self) -> list[Promise]:
        return [promise for promise in self.promises.values() if promise.is_live]

    def _pick(self, pick: int) -> Promise:
        live = self._live()
        return live[pick % len(live)]

    def _runnable(self) -> list[str]:
        """Requests that the engine still knows and that the clock has not ended."""
        return [
            i
            for i in self.roster.requests
            if self.promises[i].was_scheduled or self.now <= self.promises[i].deadline
        ]

    def _speaking(self) -> list[tuple[Promise, int]]:
        """Choices that are live and have delivered a token."""
        return [
            (promise, index)
            for promise in self._live()
            if promise.request.request_id in self.roster.requests
            for index, choice in enumerate(promise.choices)
            if choice.delivered and not choice.outcome
        ]
