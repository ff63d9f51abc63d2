"""Bugs to plant where two steps are in flight; see planted_engine_bugs."""

from __future__ import annotations

import pytest

from server.engine.core import EngineCore
from server.engine.kv_cache_manager import KVCacheManager
from server.engine.scheduler import Scheduler
from server.engine.sequence import Sequence as LiveSequence

Patch = pytest.MonkeyPatch


def plan_past_the_last_token(patch: Patch) -> None:
    """The token that is known to be the last is computed as if another followed."""
    whole = property(lambda sequence: sequence.num_tokens_with_in_flight)
    patch.setattr(LiveSequence, "num_tokens_to_compute", whole)


def count_only_what_is_known(patch: Patch) -> None:
    """The token that a step in flight chooses is forgotten when the next step is planned."""
    known = property(lambda sequence: sequence.num_tokens)
    patch.setattr(LiveSequence, "num_tokens_with_in_flight", known)


def everybody_gives_way(patch: Patch) -> None:
    """Sequences are preempted until a block is there, though one comes with the step's end."""
    patch.setattr(KVCacheManager, "will_have_blocks", lambda *_: False)


def plan_beside_a_suspect(patch: Patch) -> None:
    """While a request is tried alone, the step after it is planned already."""
    patch.setattr(Scheduler, "is_isolating", False)


def begin_behind_a_failure(patch: Patch) -> None:
    """A step is begun although one in flight has raised."""
    patch.setattr(
        EngineCore,
        "_may_begin",
        lambda core: (
            len(core._in_flight) < core.max_in_flight and not core.scheduler.is_isolating
            if core._in_flight
            else True
        ),
    )


def believe_what_followed_a_failure(patch: Patch) -> None:
    """The step after one that raised is taken for a failure of its own."""
    patch.setattr(
        Scheduler,
        "discard_step",
        lambda scheduler, plan, num_tokens: scheduler.fail_step(plan, "twice"),
    )
