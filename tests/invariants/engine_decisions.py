"""What the engine decides on the way: whose turn it is, which prefix is reused, who gives way."""

from __future__ import annotations

from typing import Any

from server.engine.prefix_hit import PrefixHit
from server.engine.request import EngineRequest
from server.engine.scheduler_state import SchedulerState
from server.engine.sequence import Sequence
from server.engine.step import StepInFlight
from server.engine.turns import Turns
from tests.engine.fake_executor import FakeExecutor
from tests.invariants.engine_oracle import BlockContents, Promise, Visits


class Decisions:
    """Stands beside the engine and looks at each of its decisions as it is taken.

    It keeps its own record of what every block holds, from what completed steps wrote.
    """

    def __init__(
        self,
        config: dict[str, Any],
        state: SchedulerState,
        turns: Turns,
        executor: FakeExecutor,
        promises: dict[str, Promise],
        visits: Visits,
    ) -> None:
        self.config = config
        self.state = state
        self.turns = turns
        self.executor = executor
        self.promises = promises
        self.visits = visits
        self.max_preemptions = config["max_preemptions"]
        self.contents = BlockContents()
        self.is_forced = False  # a preemption that the test itself asks for
        self._watch_admissions()
        self._watch_preemptions()

    def _watch_admissions(self) -> None:
        admit = self.state.kv.admit

        def watched(sequence: Sequence, hit: PrefixHit, num_tokens: int) -> bool:
            self._check_turn(sequence)
            self._check_hit(sequence, hit)
            return admit(sequence, hit, num_tokens)

        self.state.kv.admit = watched  # type: ignore[method-assign]

    def _watch_preemptions(self) -> None:
        preempt = self.state.preempt

        def watched(sequence: Sequence, *, counts: bool = True) -> None:
            if counts and not self.is_forced:
                self._check_victim(sequence)
            preempt(sequence, counts=counts)
            self.visits.events["preempted"] += counts

        self.state.preempt = watched  # type: ignore[method-assign]

    def _check_turn(self, sequence: Sequence) -> None:
        """Strict order: nothing waiting is overtaken, but for a retry after a failed step, and for
        whoever came first, where later ones have had their share."""
        if self.state.quarantined:
            return
        waiting = list(self.state.waiting)
        if self.turns.is_by_arrival:
            self.visits.events["turn of arrival"] += 1
            first = min(waiting, key=self._arrival)
            assert sequence is first, "after enough by priority, the first to arrive is next"
            return
        for other in waiting:
            assert self._rank(sequence) <= self._rank(other), (
                "the queue is served in order of priority, then arrival"
            )

    def _rank(self, sequence: Sequence) -> tuple[float, int, int]:
        return (*self.promises[sequence.request.id].rank, sequence.choice)

    def _arrival(self, sequence: Sequence) -> tuple[int, int]:
        return (self.promises[sequence.request.id].arrival, sequence.choice)

    def _check_hit(self, sequence: Sequence, hit: PrefixHit) -> None:
        size, kv = self.config["block_size"], self.state.kv
        request = self.promises[sequence.request.id].request
        tokens = tuple(sequence.token_ids)
        assert hit.num_tokens % size == 0, "a hit is whole blocks"
        assert hit.num_tokens <= len(tokens) - 1, "a hit leaves a token to compute"
        limit = len(tokens) - 1
        num_scored = len(self.promises[request.request_id].prompt_logprobs)
        owes = num_scored < len(request.prompt_token_ids) - 1
        if request.sampling.prompt_logprobs is not None and sequence.choice == 0 and owes:
            limit = num_scored
        assert hit.num_tokens <= limit, "a prompt reads no cached prefix past what is scored"
        for group, block_ids in enumerate(hit.block_ids):
            assert len(block_ids) == hit.num_tokens // size
            for index, block in enumerate(block_ids):
                content = (self._scope(request, group), tokens[: (index + 1) * size])
                if index < self._first_seen(group, hit.num_tokens):
                    assert block < 0, "a hit takes nothing from behind a window"
                    continue
                assert self.contents.by_block.get(block) == content, (
                    "a hit is the same prefix under the same salt, adapter and version, "
                    "computed by a completed step"
                )
        is_private = sequence.num_preemptions >= self.max_preemptions
        if is_private and any(window is not None for window in self.config["windows"]):
            assert hit.num_tokens == 0, "what keeps its blocks for good shares none"
        elif self.config["caching"]:
            served = [
                end
                for end in range(0, limit + 1, size)
                if all(self._serves(request, group, tokens[:end]) for group in range(kv.num_groups))
            ]
            assert hit.num_tokens == served[-1], "a hit is the longest cached prefix"
        self.visits.events["hit behind whose window blocks are gone"] += any(
            block < 0 for ids in hit.block_ids for block in ids
        )
        self.visits.events["prefix hit"] += hit.num_tokens > 0

    def _scope(self, request: EngineRequest, group: int) -> tuple[int, str, str, int]:
        return (group, request.cache_salt, request.adapter_id, request.adapter_version)

    def _first_seen(self, group: int, num_tokens: int) -> int:
        """The first block that the token after so many sees."""
        window = self.config["windows"][group]
        seen = 0 if window is None else max(0, num_tokens + 1 - window)
        return int(seen // self.config["block_size"])

    def _serves(self, request: EngineRequest, group: int, prefix: tuple[int, ...]) -> bool:
        """The cache has all blocks of the group that what follows the prefix sees."""
        size, cache = self.config["block_size"], self.state.kv.cache
        return all(
            any(
                cache.holds(block)
                for block in self.contents.blocks_with(
                    (self._scope(request, group), prefix[: (index + 1) * size])
                )
            )
            for index in range(self._first_seen(group, len(prefix)), len(prefix) // size)
        )

    def _check_victim(self, victim: Sequence) -> None:
        running = self.state.running
        oldest = min(running, key=self._arrival)
        assert victim is not oldest, "the one that arrived first is never preempted"
        assert victim.num_preemptions < self.max_preemptions, "nor is a protected one"

        in_turn = max((self._arrival(s) for s in running if s.is_in_turn), default=(-1, 0))

        def last(s: Sequence) -> tuple[Any, ...]:
            if self._arrival(s) <= in_turn:
                return (0, *self._arrival(s))
            return (1, *self._rank(s))

        later = [s for s in running if last(s) > last(victim) and s is not oldest]
        assert all(s.num_preemptions >= self.max_preemptions for s in later), (
            "the victim is the lowest in priority, then the latest; what got its row by arrival, "
            "and what came before that, gives way after all others"
        )

    def check_plan(self, step: StepInFlight, now: float) -> None:
        plan, config = step.plan, self.config
        rows = [row.row for row in plan.rows]
        assert len(set(rows)) == len(rows) <= config["max_seqs"], "at most max_num_seqs rows"
        assert plan.num_tokens <= config["budget"], "a step keeps to its token budget"
        assert all(row.num_scheduled_tokens > 0 for row in plan.rows), "no empty chunk"
        logits = sum(row.num_prompt_logits + row.samples for row in plan.rows)
        assert logits <= config["logit_rows"], "a step keeps to max_logit_rows"
        for planned, scheduled in zip(plan.rows, self.state.in_flight[plan.step_id], strict=True):
            sequence = scheduled.sequence
            promise = self.promises[sequence.request.id]
            under_way = sum(
                row.chunk.num_sampled * (row.is_current and row.sequence is sequence)
                for step_id, rows in self.state.in_flight.items()
                for row in rows
                if step_id < plan.step_id
            )
            known = sequence.num_tokens - len(promise.request.prompt_token_ids)
            generated = known + under_way
            last = generated + plan.num_decode_steps - 1
            assert last < max(1, promise.request.sampling.max_tokens), (
                "what is known to end is never planned past its end"
            )
            pending = generated < promise.request.sampling.min_tokens
            assert planned.min_tokens_pending == (planned.samples and pending), (
                "end ids are forbidden exactly while fewer than min_tokens were generated"
            )
            assert promise.was_scheduled or now <= promise.deadline, (
                "what waited past its deadline is never scheduled"
            )
            promise.was_scheduled = True
            self.visits.events["mixed step"] += len(plan.rows) > 1 and plan.num_tokens > len(rows)
        if any(row.num_computed_tokens and row.choice for row in plan.admitted):
            self.visits.events["fork or resumed choice"] += 1

    def note_writes(
        self, namespace: Any, chunk: Any, tables: Any, tokens: tuple[int, ...], failed: bool
    ) -> None:
        """What each block written in this step holds now: a full prefix, or nothing of use."""
        size = self.config["block_size"]
        for group, table in enumerate(tables):
            scope = (
                group,
                namespace.salt,
                namespace.adapter_id,
                namespace.adapter_version,
            )
            for index in range(chunk.start // size, min(len(table), -(-chunk.end // size))):
                end = (index + 1) * size
                is_full = chunk.end >= end and not failed
                content = (scope, tokens[:end]) if is_full else None
                self.contents.overwrite(table[index], content)
