"""Mistakes with windows, to plant in the engine: what is behind one, and when it is let go of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from server.engine import kv_cache_manager
from server.engine.kv_cache_manager import KVCacheManager
from server.engine.kv_spec import KVCacheGroup
from server.engine.prefix_cache import CacheEntry, PrefixCache
from server.engine.prefix_hit import PrefixHit
from server.engine.scheduler_state import SchedulerState
from server.engine.sequence import Sequence as LiveSequence

Patch = pytest.MonkeyPatch


def free_a_block_too_early(patch: Patch) -> None:
    """What the oldest token of the window lies in is behind it."""
    real = KVCacheGroup.first_block

    def early(group: KVCacheGroup, position: int) -> int:
        if group.window is None:
            return 0
        return min(real(group, position) + 1, position // group.block_size)

    patch.setattr(KVCacheGroup, "first_block", early)


def free_what_a_step_in_flight_reads(patch: Patch) -> None:
    """Windows move on when a step is planned, not when it is done."""
    real = KVCacheManager.free_behind_window

    def early(kv: KVCacheManager, sequence: LiveSequence) -> None:
        done = sequence.num_committed_tokens
        sequence.num_committed_tokens = sequence.num_computed_tokens
        real(kv, sequence)
        sequence.num_committed_tokens = done

    patch.setattr(KVCacheManager, "free_behind_window", early)


def keep_what_is_behind_the_window(patch: Patch) -> None:
    """Blocks are held to the end of their sequence."""
    patch.setattr(KVCacheManager, "free_behind_window", lambda kv, sequence: None)


def hit_without_a_window_block(patch: Patch) -> None:
    """A prefix counts as served where a block that its next token sees is missing."""
    real = kv_cache_manager.longest_hit

    def greedy(entries: Sequence[CacheEntry], groups: Sequence[KVCacheGroup]) -> PrefixHit:
        narrower = [
            group
            if group.window is None
            else replace(group, window=max(1, group.window - group.block_size))
            for group in groups
        ]
        return real(entries, narrower)

    patch.setattr(kv_cache_manager, "longest_hit", greedy)


def forget_before_it_is_cached(patch: Patch) -> None:
    """Windows move on before the step's full blocks are offered to the cache."""
    commit = KVCacheManager.commit

    def late(kv: KVCacheManager, sequence: LiveSequence) -> None:
        kv.free_behind_window(sequence)
        commit(kv, sequence)

    patch.setattr(KVCacheManager, "commit", late)


def fork_after_the_window_has_moved(patch: Patch) -> None:
    """The first choice lets go of what the others, one token behind it, still see."""
    fork = SchedulerState.fork

    def late(state: SchedulerState, request: Any, *, reserve: bool) -> None:
        state.kv.free_behind_window(request.primary)
        fork(state, request, reserve=reserve)

    patch.setattr(SchedulerState, "fork", late)


def share_what_is_used_again(patch: Patch) -> None:
    """A sequence with reserved blocks offers those of window groups to others."""
    patch.setattr(KVCacheManager, "_is_private", lambda *_: False)


def know_prefixes_without_bound(patch: Patch) -> None:
    """What windows leave behind is remembered for ever."""
    patch.setattr(PrefixCache, "_make_room", lambda cache, parent: True)
