"""Bugs to plant in the engine: each is one mistake that somebody could make.

A bug is a function that patches the product. Its docstring says what is wrong; BUGS says what has
to notice it: a short run of the state machine (``story`` is None) or one story.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tests.engine.stories import test_block_pool as pool_stories
from tests.engine.stories import test_overlap as overlap_stories
from tests.engine.stories import test_prefix as prefix_stories
from tests.invariants.planted_block_bugs import (
    allocate_in_part,
    evict_a_referenced_block,
    evict_the_most_recent_block,
    free_while_in_flight,
    free_without_looking,
    leak_what_is_released,
    no_block_copy_on_fork,
    share_a_block_that_is_not_full,
    skip_a_reference,
)
from tests.invariants.planted_order_bugs import (
    ignore_the_deadline,
    ignore_the_queue_bound,
    preempt_the_oldest,
    serve_the_last_first,
    spend_the_budget_twice,
)
from tests.invariants.planted_overlap_bugs import (
    begin_behind_a_failure,
    believe_what_followed_a_failure,
    count_only_what_is_known,
    everybody_gives_way,
    plan_beside_a_suspect,
    plan_past_the_last_token,
)
from tests.invariants.planted_prefix_bugs import (
    cache_before_the_step_is_done,
    forget_the_adapter_version,
    forget_the_salt,
    hit_the_whole_prompt,
    release_the_parent_first,
    reset_half_the_cache,
    trust_the_hash,
)
from tests.invariants.planted_row_bugs import (
    draw_every_choice_with_one_key,
    hand_the_tokens_to_the_wrong_rows,
    keep_the_rows_of_a_failed_step,
    min_tokens_off_by_one,
    never_tell_the_executor,
    release_a_row_twice,
    send_prompt_scores_twice,
    swap_the_parameters_of_two_rows,
    take_a_stale_result,
)

Patch = pytest.MonkeyPatch


@dataclass(frozen=True)
class PlantedBug:
    plant: Callable[[Patch], None]
    story: Callable[[], None] | None = None

    @property
    def name(self) -> str:
        return self.plant.__name__


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
    PlantedBug(
        forget_the_adapter_version,
        prefix_stories.test_a_reloaded_adapter_finds_nothing_of_its_old_version,
    ),
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
