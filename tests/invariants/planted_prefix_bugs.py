"""Mistakes with prefixes, to plant in the engine: what is found again, and by whom."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from server.engine.block_pool import BlockPool
from server.engine.kv_cache_manager import KVCacheManager
from server.engine.prefix_cache import CacheEntry, PrefixCache
from server.engine.prefix_hit import PrefixHit
from server.engine.scheduler import Scheduler
from server.engine.sequence import Request
from server.engine.sequence import Sequence as LiveSequence
from server.engine.step import StepBuilder

Patch = pytest.MonkeyPatch


def forget_the_salt(patch: Patch) -> None:
    """Users with another salt share prefixes."""
    _without(patch, salt="")


def forget_the_adapter_version(patch: Patch) -> None:
    """A reloaded adapter reads what its old version computed."""
    _without(patch, adapter_version=0)


def _without(patch: Patch, **fields: Any) -> None:
    start = Request.__init__

    def forgetful(request: Request, *args: Any, **kwargs: Any) -> None:
        start(request, *args, **kwargs)
        request.namespace = replace(request.namespace, **fields)

    patch.setattr(Request, "__init__", forgetful)


def hit_the_whole_prompt(patch: Patch) -> None:
    """A prompt that is cached whole leaves no token to compute."""

    find = KVCacheManager.find_prefix

    def whole(kv: KVCacheManager, sequence: LiveSequence, max_tokens: int) -> PrefixHit:
        return find(kv, sequence, max_tokens + 1)

    patch.setattr(KVCacheManager, "find_prefix", whole)


def cache_before_the_step_is_done(patch: Patch) -> None:
    """Full blocks can be found as soon as they are planned."""
    plan_row = Scheduler._plan_row

    def early(
        scheduler: Scheduler, builder: StepBuilder, sequence: LiveSequence, *rest: Any
    ) -> None:
        plan_row(scheduler, builder, sequence, *rest)
        confirmed = sequence.num_committed_tokens
        sequence.num_committed_tokens = sequence.num_computed_tokens
        scheduler.kv.commit(sequence)
        sequence.num_committed_tokens = confirmed

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
