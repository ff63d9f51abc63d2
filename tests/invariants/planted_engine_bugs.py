"""Bugs to plant in the engine: each is one mistake that somebody could make.

A bug is a function that patches the product. Its docstring says what is wrong; BUGS says what has
to notice it: a short run of the state machine (``story`` is None) or one story.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import test_engine_stories_block_pool as pool_stories
import test_engine_stories_overlap as overlap_stories
import test_engine_stories_prefix as prefix_stories
from planted_overlap_bugs import (
    begin_behind_a_failure,
    believe_what_followed_a_failure,
    count_only_what_is_known,
    everybody_gives_way,
    plan_beside_a_suspect,
    plan_past_the_last_token,
)

from server.engine import scheduler as scheduler_module
from server.engine.admission import Admission
from server.engine.block_pool import BlockPool, OutOfBlocks
from server.engine.kv_cache_manager import KVCacheManager, PrefixHit
from server.engine.plan import StepPlan, StepResult
from server.engine.prefix_cache import CacheEntry, PrefixCache
from server.engine.queue import WaitingQueue
from server.engine.results import apply_result
from server.engine.roster import Roster
from server.engine.rows import RowTable
from server.engine.scheduler import Scheduler
from server.engine.sequence import LiveRequest
from server.engine.sequence import Sequence as LiveSequence
from server.engine.step_draft import ScheduledRow, StepDraft

Patch = pytest.MonkeyPatch


@dataclass(frozen=True)
class PlantedBug:
    plant: Callable[[Patch], None]
    story: Callable[[], None] | None = None

    @property
    def name(self) -> str:
        return self.plant.__name__


# -- blocks ------------------------------------------------------------------------------------


def skip_a_reference(patch: Patch) -> None:
    """A shared block gets no reference for its last new holder."""
    share = BlockPool.share
    patch.setattr(BlockPool, "share", lambda pool, ids: share(pool, list(ids)[:-1]))


def evict_a_referenced_block(patch: Patch) -> None:
    """Where no blank block is left, the lowest cached block is taken, held or not."""
    take_one = BlockPool._take_one

    def take_any(pool: BlockPool) -> int:
        held = [b for b in range(pool.num_blocks) if pool._references[b]]
        cached = [b for b in held if pool._contents.holds(b)]
        if pool._blank or not cached:
            return take_one(pool)
        pool._contents.evict(cached[0])
        return cached[0]

    patch.setattr(BlockPool, "_take_one", take_any)


def evict_the_most_recent_block(patch: Patch) -> None:
    """What was used last is forgotten first."""

    def take_last(pool: BlockPool) -> int:
        if pool._blank:
            return pool._blank.popleft()
        block_id, _ = pool._idle.popitem()
        pool._contents.evict(block_id)
        return block_id

    patch.setattr(BlockPool, "_take_one", take_last)


def allocate_in_part(patch: Patch) -> None:
    """An allocation that fails keeps what it had found so far."""
    allocate = BlockPool.allocate

    def greedy(pool: BlockPool, count: int) -> list[int]:
        available = pool.num_available
        if count > available:
            allocate(pool, available)
            raise OutOfBlocks(f"{count} blocks wanted, {available} available")
        return allocate(pool, count)

    patch.setattr(BlockPool, "allocate", greedy)


def free_without_looking(patch: Patch) -> None:
    """A second free of the same block goes through."""

    def release(pool: BlockPool, block_ids: Sequence[int]) -> None:
        for block_id in block_ids:
            pool._references[block_id] = max(0, pool._references[block_id] - 1)
            if not pool._references[block_id]:
                pool._retire(block_id)

    patch.setattr(BlockPool, "release", release)


def free_while_in_flight(patch: Patch) -> None:
    """The blocks of an ended request are free although a step in flight still writes them."""
    patch.setattr(Roster, "step_in_flight", lambda roster, sequence: None)


def leak_what_is_released(patch: Patch) -> None:
    """A sequence that leaves its row takes its last block with it."""
    release = KVCacheManager.release

    def leak(kv: KVCacheManager, sequence: LiveSequence, step_in_flight: int | None) -> None:
        for table in sequence.block_tables:
            del table[1:]
        release(kv, sequence, step_in_flight)

    patch.setattr(KVCacheManager, "release", leak)


# -- forks -------------------------------------------------------------------------------------


def share_a_block_that_is_not_full(patch: Patch) -> None:
    """A forked choice writes into the block that its parent is writing."""
    fork = KVCacheManager.fork

    def share_all(kv: KVCacheManager, parent: LiveSequence, child: LiveSequence, *rest: int) -> Any:
        pairs = fork(kv, parent, child, *rest)
        for source, destination in pairs or []:
            for table in child.block_tables:
                if destination in table:
                    kv.pool.release([destination])
                    kv.pool.share([source])
                    table[table.index(destination)] = source
        return pairs if pairs is None else []

    patch.setattr(KVCacheManager, "fork", share_all)


def no_block_copy_on_fork(patch: Patch) -> None:
    """A forked choice gets a block of its own, and nobody copies what belongs into it."""
    patch.setattr(Roster, "collect_copies", lambda roster, step_id: roster.copies.clear() or ())


# -- prefixes ----------------------------------------------------------------------------------


def forget_the_salt(patch: Patch) -> None:
    """Users with another salt share prefixes."""
    _without(patch, salt="")


def forget_the_adapter_version(patch: Patch) -> None:
    """A reloaded adapter reads what its old version computed."""
    _without(patch, adapter_version=0)


def _without(patch: Patch, **fields: Any) -> None:
    start = LiveRequest.__init__

    def forgetful(request: LiveRequest, *args: Any, **kwargs: Any) -> None:
        start(request, *args, **kwargs)
        request.namespaces = tuple(replace(space, **fields) for space in request.namespaces)

    patch.setattr(LiveRequest, "__init__", forgetful)


def hit_the_whole_prompt(patch: Patch) -> None:
    """A prompt that is cached whole leaves no token to compute."""

    find = KVCacheManager.find_prefix

    def whole(kv: KVCacheManager, sequence: LiveSequence, max_tokens: int) -> PrefixHit:
        return find(kv, sequence, max_tokens + 1)

    patch.setattr(KVCacheManager, "find_prefix", whole)


def cache_before_the_step_is_done(patch: Patch) -> None:
    """Full blocks can be found as soon as they are planned."""
    plan_row = Scheduler._plan_row

    def early(scheduler: Scheduler, draft: StepDraft, sequence: LiveSequence, *rest: Any) -> None:
        plan_row(scheduler, draft, sequence, *rest)
        confirmed = sequence.num_confirmed_tokens
        sequence.num_confirmed_tokens = sequence.num_computed_tokens
        scheduler.kv.commit(sequence)
        sequence.num_confirmed_tokens = confirmed

    patch.setattr(Scheduler, "_plan_row", early)


def trust_the_hash(patch: Patch) -> None:
    """Tokens with the same hash are taken for the same tokens."""
    patch.setattr(CacheEntry, "matches", lambda *args: True)


def release_the_parent_first(patch: Patch) -> None:
    """Of an ended prefix, the first block is forgotten before the ones that hang on it."""
    release = BlockPool.release
    patch.setattr(BlockPool, "release", lambda pool, ids: release(pool, list(ids)[::-1]))


def reset_half_the_cache(patch: Patch) -> None:
    """A reset blanks the idle blocks and still finds them."""
    patch.setattr(PrefixCache, "clear", lambda cache: None)


# -- rows and results --------------------------------------------------------------------------


def swap_the_parameters_of_two_rows(patch: Patch) -> None:
    """Of two rows admitted together, each gets the other's sampling parameters."""
    seal = Scheduler._seal

    def swapped(scheduler: Scheduler, draft: StepDraft) -> StepPlan:
        plan = seal(scheduler, draft)
        if len(plan.admitted) < 2:
            return plan
        first, second, *others = plan.admitted
        pair = (
            replace(first, sampling=second.sampling),
            replace(second, sampling=first.sampling),
        )
        return replace(plan, admitted=(*pair, *others))

    patch.setattr(Scheduler, "_seal", swapped)


def draw_every_choice_with_one_key(patch: Patch) -> None:
    """The choices of a request are all the first one."""
    admitted = ScheduledRow.admitted
    patch.setattr(ScheduledRow, "admitted", lambda row: replace(admitted(row), choice=0))


def hand_the_tokens_to_the_wrong_rows(patch: Patch) -> None:
    """Results are taken in another order than the plan's rows."""

    def rotated(roster: Roster, rows: Iterable[ScheduledRow], result: StepResult) -> int:
        rotation = (*result.rows[1:], *result.rows[:1])
        return apply_result(roster, rows, replace(result, rows=rotation))

    patch.setattr(scheduler_module, "apply_result", rotated)


def take_a_stale_result(patch: Patch) -> None:
    """A sequence preempted while its step was under way still gets that step's token."""
    patch.setattr(ScheduledRow, "is_current", property(lambda row: not row.sequence.is_finished))


def release_a_row_twice(patch: Patch) -> None:
    """A row that was given back is free two times over."""
    give_back = RowTable.give_back

    def twice(rows: RowTable, row: int) -> None:
        give_back(rows, row)
        heapq.heappush(rows._free, row)

    patch.setattr(RowTable, "give_back", twice)


def never_tell_the_executor(patch: Patch) -> None:
    """Rows are given back without a word to the executor, which keeps their state."""
    patch.setattr(RowTable, "collect_released", lambda rows: rows._to_release.clear() or ())


def keep_the_rows_of_a_failed_step(patch: Patch) -> None:
    """After a step that raised, its tokens pass for computed."""

    def forgive(scheduler: Scheduler, plan: StepPlan, message: str) -> None:
        scheduler.roster.in_flight.pop(plan.step_id)
        scheduler.kv.step_done(plan.step_id)

    patch.setattr(Scheduler, "fail_step", forgive)


def min_tokens_off_by_one(patch: Patch) -> None:
    """The last of the first ``min_tokens`` tokens may be an end."""
    flag = property(lambda seq: seq.num_generated_tokens + 1 < seq.sampling.min_tokens)
    patch.setattr(LiveSequence, "min_tokens_pending", flag)


def send_prompt_scores_twice(patch: Patch) -> None:
    """A prompt that is computed again after a preemption is scored again from its start."""
    forget = LiveSequence.forget_computed

    def forget_all(sequence: LiveSequence) -> None:
        forget(sequence)
        sequence.request.num_prompt_logits_sent = 0

    patch.setattr(LiveSequence, "forget_computed", forget_all)


# -- order and bounds --------------------------------------------------------------------------


def preempt_the_oldest(patch: Patch) -> None:
    """What arrived first gives way."""

    def oldest(running: Iterable[LiveSequence], max_preemptions: int) -> LiveSequence:
        return min(running, key=lambda sequence: sequence.rank)

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

    def add(draft: StepDraft, scheduled: ScheduledRow) -> None:
        draft.logits_left -= scheduled.chunk.num_logit_rows
        draft.rows[scheduled.sequence] = scheduled

    patch.setattr(StepDraft, "add", add)


BUGS = (
    PlantedBug(skip_a_reference),
    PlantedBug(evict_a_referenced_block),
    PlantedBug(
        evict_the_most_recent_block,
        prefix_stories.test_the_prefix_used_longest_ago_is_forgotten_first,
    ),
    PlantedBug(allocate_in_part, pool_stories.test_too_many_blocks_are_not_handed_out_in_part),
    PlantedBug(free_without_looking, pool_stories.test_a_double_free_raises_and_changes_nothing),
    PlantedBug(free_while_in_flight),
    PlantedBug(leak_what_is_released),
    PlantedBug(share_a_block_that_is_not_full),
    PlantedBug(no_block_copy_on_fork),
    PlantedBug(forget_the_salt),
    PlantedBug(forget_the_adapter_version),
    PlantedBug(hit_the_whole_prompt),
    PlantedBug(cache_before_the_step_is_done),
    PlantedBug(trust_the_hash),
    PlantedBug(
        release_the_parent_first,
        prefix_stories.test_the_leaf_of_a_prefix_is_forgotten_before_what_it_hangs_on,
    ),
    PlantedBug(reset_half_the_cache),
    PlantedBug(swap_the_parameters_of_two_rows),
    PlantedBug(draw_every_choice_with_one_key),
    PlantedBug(hand_the_tokens_to_the_wrong_rows),
    PlantedBug(take_a_stale_result),
    PlantedBug(release_a_row_twice),
    PlantedBug(never_tell_the_executor),
    PlantedBug(keep_the_rows_of_a_failed_step),
    PlantedBug(min_tokens_off_by_one),
    PlantedBug(send_prompt_scores_twice),
    PlantedBug(preempt_the_oldest),
    PlantedBug(ignore_the_queue_bound),
    PlantedBug(serve_the_last_first),
    PlantedBug(ignore_the_deadline),
    PlantedBug(spend_the_budget_twice),
    PlantedBug(plan_past_the_last_token),
    PlantedBug(
        count_only_what_is_known,
        overlap_stories.test_the_next_token_is_planned_before_the_last_one_is_known,
    ),
    PlantedBug(
        everybody_gives_way,
        overlap_stories.test_one_victim_gives_way_while_its_blocks_wait_for_a_step,
    ),
    PlantedBug(
        plan_beside_a_suspect,
        overlap_stories.test_a_suspect_runs_alone_and_without_a_step_behind_it,
    ),
    PlantedBug(
        begin_behind_a_failure,
        overlap_stories.test_nothing_is_begun_behind_a_step_that_did_not_start,
    ),
    PlantedBug(
        believe_what_followed_a_failure,
        overlap_stories.test_the_step_after_a_failed_one_is_void_and_blamed_for_nothing,
    ),
)
