"""The engine's books against a recount: blocks, gauges, requests; and that nothing is left."""

from __future__ import annotations

from typing import Any

from engine_clients import Clients
from engine_oracle import Visits
from fake_executor import FakeExecutor

from server.engine.core import EngineCore
from server.engine.sequence import SequenceState


class Books:
    def __init__(
        self,
        config: dict[str, Any],
        core: EngineCore,
        executor: FakeExecutor,
        clients: Clients,
        visits: Visits,
    ) -> None:
        self.config = config
        self.core = core
        self.roster = core.scheduler.roster
        self.executor = executor
        self.clients = clients
        self.visits = visits

    def check(self) -> None:
        self.core.check()
        self._check_step_in_flight()
        self._check_gauges()
        self._check_counts()
        for request in self.roster.requests.values():
            for sequence in request.sequences:
                self.visits.states[sequence.state.value] += 1
                bound = self.config["max_preemptions"]
                assert sequence.num_preemptions <= bound, "preemptions are bounded per sequence"

    def _check_step_in_flight(self) -> None:
        for fake in self.executor.steps:
            held = [self.roster.kv.pool.num_references(block) for block in fake.blocks]
            assert all(held), "no block is free while a step in flight may use it"

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
        accepted = self.clients.num_submitted - self.clients.num_refused
        assert accepted == len(self.clients.promises), "submitted is refused plus accepted"
        live = {i for i, promise in self.clients.promises.items() if promise.is_live}
        unsaid = {output.request_id for output in self.roster.outbox.choices}
        assert set(self.roster.requests) | unsaid >= live, "what is live is known to the engine"
        assert set(self.roster.requests) <= live, "what has ended is forgotten"

    def check_nothing_is_left(self) -> None:
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
