"""Bugs to plant in the engine: each is one mistake that somebody could make.

A bug is a function that patches the product. Its docstring says what is wrong. What has to notice
it is CI's search of the state machine, or where STORIES names one, that story.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from inspect import isfunction

import pytest

from tests.engine.stories import test_block_pool as pool
from tests.engine.stories import test_overlap as overlap
from tests.engine.stories import test_prefix as prefix
from tests.engine.stories import test_windows as windows
from tests.invariants import (
    planted_block_bugs,
    planted_order_bugs,
    planted_overlap_bugs,
    planted_prefix_bugs,
    planted_row_bugs,
    planted_window_bugs,
)

ROOMS = (
    planted_block_bugs,
    planted_prefix_bugs,
    planted_row_bugs,
    planted_order_bugs,
    planted_overlap_bugs,
    planted_window_bugs,
)
STORIES: dict[str, Callable[[], None]] = {
    "evict_the_most_recent_block": prefix.test_the_prefix_used_longest_ago_is_forgotten_first,
    "allocate_in_part": pool.test_too_many_blocks_are_not_handed_out_in_part,
    "free_without_looking": pool.test_a_double_free_raises_and_changes_nothing,
    "forget_the_salt": partial(
        prefix.test_another_salt_or_adapter_or_version_finds_nothing, {"salt": "s"}
    ),
    "forget_the_adapter_version": prefix.test_a_reloaded_adapter_finds_nothing_of_its_old_version,
    "release_the_parent_first": (
        prefix.test_the_leaf_of_a_prefix_is_forgotten_before_what_it_hangs_on
    ),
    "count_only_what_is_known": overlap.test_the_next_token_is_planned_before_the_last_one_is_known,
    "everybody_gives_way": overlap.test_one_victim_gives_way_while_its_blocks_wait_for_a_step,
    "plan_beside_a_suspect": overlap.test_a_suspect_runs_alone_and_without_a_step_behind_it,
    "begin_behind_a_failure": overlap.test_nothing_is_begun_behind_a_step_that_did_not_start,
    "believe_what_followed_a_failure": (
        overlap.test_the_step_after_a_failed_one_is_void_and_blamed_for_nothing
    ),
    "free_what_a_step_in_flight_reads": (
        windows.test_a_step_in_flight_keeps_what_its_first_token_sees
    ),
    "keep_what_is_behind_the_window": (
        windows.test_a_sequence_holds_its_window_and_no_more_however_long_it_gets
    ),
    "forget_before_it_is_cached": windows.test_what_leaves_a_window_stays_cached,
    "hit_without_a_window_block": (
        windows.test_a_hit_needs_of_a_window_group_only_what_the_next_token_sees
    ),
    "share_what_is_used_again": (
        windows.test_what_a_protected_sequence_uses_again_is_shared_with_nobody
    ),
    "hit_the_whole_prompt": partial(
        prefix.test_the_same_prompt_is_found_in_whole_blocks_and_never_whole, 8, 4
    ),
    "fork_after_the_window_has_moved": (
        windows.test_choices_get_what_they_see_of_the_prompt_before_the_first_one_frees_it
    ),
    "know_prefixes_without_bound": (
        windows.test_prefixes_that_windows_leave_are_known_up_to_a_bound
    ),
}


@dataclass(frozen=True)
class PlantedBug:
    plant: Callable[[pytest.MonkeyPatch], None]

    @property
    def name(self) -> str:
        return self.plant.__name__

    @property
    def story(self) -> Callable[[], None] | None:
        return STORIES.get(self.name)


BUGS = tuple(
    PlantedBug(plant)
    for room in ROOMS
    for name, plant in vars(room).items()
    if isfunction(plant) and plant.__module__ == room.__name__ and not name.startswith("_")
)
