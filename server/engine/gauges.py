"""EngineGauges: where the engine stands now, in integers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # not needed by those who read gauges only, before an engine is there
    from server.engine.scheduler_state import SchedulerState


@dataclass(frozen=True, slots=True)
class EngineGauges:
    """Blocks: total = active + reserved + cached + free.

    ``blocks_active`` are in a live block table, ``blocks_reserved`` wait for a step in flight,
    ``blocks_cached`` are evictable prefixes. Token figures count cache slots: of the
    ``kv_tokens_reserved`` slots of active blocks, ``kv_tokens_filled`` hold a token or will after
    the step in flight; the difference is tail waste. Counters count since the engine started.
    ``oldest_queued_at_us`` is a moment and not an age, so that a reader's age goes on growing while
    the engine stands still.
    """

    requests_running: int  # with a choice that has a row
    requests_waiting: int
    sequences_running: int
    sequences_waiting: int
    sequences_preempted: int  # of those waiting
    waiting_tokens: int
    oldest_queued_at_us: int  # arrival of the oldest never scheduled, by the clock; 0: none
    blocks_total: int
    blocks_active: int
    blocks_reserved: int
    blocks_cached: int
    blocks_free: int
    kv_tokens_capacity: int
    kv_tokens_reserved: int
    kv_tokens_filled: int
    preemptions: int  # counter
    failed_steps: int  # counter
    steps: int  # counter
    heartbeat: int  # counter: rises with every poll of the core loop, idle ones too
    draining: int  # 0 or 1


@dataclass(frozen=True, slots=True)
class LoopCounts:
    """What the core loop itself counts."""

    failed_steps: int = 0
    steps: int = 0
    heartbeat: int = 0
    draining: int = 0


def read_gauges(state: SchedulerState, loop: LoopCounts) -> EngineGauges:
    kv, pool = state.kv, state.kv.pool
    reserved = kv.reserved_block_ids()
    num_active = pool.num_allocated - len(reserved)
    running_ids = {sequence.request.id for sequence in state.running}
    return EngineGauges(
        requests_running=len(running_ids),
        requests_waiting=len(state.requests) - len(running_ids),
        sequences_running=len(state.running),
        sequences_waiting=len(state.waiting),
        sequences_preempted=state.waiting.num_preempted,
        waiting_tokens=state.waiting.num_tokens,
        oldest_queued_at_us=int(state.waiting.oldest_new_arrival_time * 1e6),
        blocks_total=pool.num_blocks,
        blocks_active=num_active,
        blocks_reserved=len(reserved),
        blocks_cached=pool.num_cached,
        blocks_free=pool.num_free,
        kv_tokens_capacity=pool.num_blocks * kv.block_size,
        kv_tokens_reserved=num_active * kv.block_size,
        kv_tokens_filled=num_active * kv.block_size - kv.empty_slots(state.running),
        preemptions=state.num_preemptions,
        failed_steps=loop.failed_steps,
        steps=loop.steps,
        heartbeat=loop.heartbeat,
        draining=loop.draining,
    )
