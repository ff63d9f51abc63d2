"""The engine's figures against a recount: blocks, gauges, requests; and that nothing is left."""

from __future__ import annotations

from typing import Any

from server.engine.core import EngineCore
from server.engine.sequence import SequenceState
from tests.engine.fake_executor import FakeExecutor
from tests.invariants.engine_clients import Clients
from tests.invariants.engine_oracle import Visits


class EngineChecks:
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
        self.state = core.scheduler.state
        self.executor = executor
        self.clients = clients
        self.visits = visits

    def check(self) -> None:
        self.core.check()
        self._check_step_in_flight()
        self._check_gauges()
        self._check_windows()
        self._check_counts()
        for request in self.state.requests.values():
            for sequence in request.sequences:
                self.visits.states[sequence.state.value] += 1
                bound = self.config["max_preemptions"]
                assert sequence.num_preemptions <= bound, "preemptions are bounded per sequence"

    def _check_step_in_flight(self) -> None:
        for fake in self.executor.steps:
            held = [self.state.kv.pool.num_references(block) for block in fake.blocks]
            assert all(held), "no block is free while a step in flight may use it"

    def _check_gauges(self) -> None:
        gauges, state = self.core.gauges(), self.state
        held = {b for s in state.running for t in s.block_tables for b in t if b >= 0}
        deferred = {b for d in state.kv.deferred for b in d.block_ids} - held
        assert gauges.blocks_active == len(held), "the gauges are the state, at any moment"
        assert gauges.blocks_reserved == len(deferred)
        total = gauges.blocks_active + gauges.blocks_reserved
        assert total + gauges.blocks_cached + gauges.blocks_free == self.config["num_blocks"]
        states = [s.state for r in state.requests.values() for s in r.sequences]
        assert gauges.sequences_running == states.count(SequenceState.RUNNING)
        live = gauges.requests_running + gauges.requests_waiting
        assert live == len(state.requests)
        assert 0 <= gauges.kv_tokens_filled <= gauges.kv_tokens_reserved
        assert gauges.kv_tokens_filled == self._filled_slots(), "filled slots are counted once"

    def _filled_slots(self) -> int:
        size = self.config["block_size"]
        filled: dict[int, int] = {}
        for sequence in self.state.running:
            for table in sequence.block_tables:
                for index, block in enumerate(table):
                    tokens = min(size, max(0, sequence.num_computed_tokens - index * size))
                    filled[block] = max(tokens, filled.get(block, 0))
        return sum(tokens for block, tokens in filled.items() if block >= 0)

    def _check_windows(self) -> None:
        """Of every group a sequence holds what its next token sees and what steps compute, and no
        block more; with its length reserved, what it needs at any time."""
        size = self.config["block_size"]
        for sequence in self.state.running:
            done, planned = sequence.num_committed_tokens, sequence.num_computed_tokens
            for window, table in zip(self.config["windows"], sequence.block_tables, strict=True):
                oldest = 0 if window is None else max(0, done + 1 - window)
                needed = {p // size for p in range(oldest, planned)}
                held = {index for index, block in enumerate(table) if block >= 0}
                assert needed <= held, "what a token sees is held"
                if not sequence.num_reserved_tokens:
                    needed.add(oldest // size)
                    assert held <= needed, "what is behind the window is freed when a step is done"
                if window is not None and len(table) > len(held):
                    self.visits.events["freed behind a window"] += 1

    def _check_counts(self) -> None:
        accepted = self.clients.num_submitted - self.clients.num_refused
        assert accepted == len(self.clients.promises), "submitted is refused plus accepted"
        live = {i for i, promise in self.clients.promises.items() if promise.is_live}
        unsaid = {output.request_id for output in self.state.outputs.choices}
        assert set(self.state.requests) | unsaid >= live, "what is live is known to the engine"
        assert set(self.state.requests) <= live, "what has ended is forgotten"

    def check_nothing_is_left(self) -> None:
        gauges, pool = self.core.gauges(), self.state.kv.pool
        held = [pool.num_references(block) for block in range(pool.num_blocks)]
        assert not any(held), "after all requests end no block is held"
        assert gauges.blocks_cached + gauges.blocks_free == gauges.blocks_total
        assert not self.state.requests
        assert not self.state.running
        assert not self.state.waiting
        assert not self.state.in_flight
        assert not self.state.copies, "no copy waits for a fork that ended"
        assert not self.state.quarantined, "no suspicion outlives its request"
        assert not self.state.kv.deferred
        assert self.state.rows.num_free == self.config["max_seqs"]
        assert self.state.waiting.num_tokens == 0
        assert self.state.waiting.num_new == 0
        self.core.reset_prefix_cache()
        assert self.core.gauges().blocks_free == gauges.blocks_total
