"""How many sequences of which length the planned pool holds, and how long one may be."""

from __future__ import annotations

from dataclasses import dataclass, replace

from server.memory.layout import max_context
from server.memory.planner.plan import DoesNotFit, MemoryPlan
from server.memory.planner.planner import size_memory
from server.memory.planner.suggestions import largest_that
from server.plan_cli.make import Plan

_FIRST_LENGTH, _NEXT = 512, 4


@dataclass(frozen=True, slots=True)
class LengthCapacity:
    """Sequences of ``length`` tokens: how many the KV cache holds at once, and the bytes of one."""

    length: int
    held: int
    bytes_each: int


def by_length(plan: MemoryPlan) -> list[LengthCapacity]:
    """For a few lengths up to max_model_len. A sequence takes whole blocks."""
    lengths = []
    length = _FIRST_LENGTH
    while length < plan.max_model_len:
        lengths.append(length)
        length *= _NEXT
    return [at_length(plan, length) for length in (*lengths, plan.max_model_len)]


def at_length(plan: MemoryPlan, length: int) -> LengthCapacity:
    blocks = plan.kv.blocks_of(length)
    return LengthCapacity(length, int(plan.held_at_once(length)), blocks * plan.kv.page_bytes)


def largest_max_model_len(plan: Plan) -> int:
    """The longest --max-model-len that fits, 0 where none does; whole blocks, but for the model's
    own longest context."""
    spec, most = plan.model.spec, max_context(plan.model.spec)
    args = replace(plan.args, whole_load=plan.args.is_whole_load)

    def fits(length: int) -> bool:
        asked = replace(args, max_model_len=length)
        try:
            size_memory(spec, asked, plan.target.placement.available)
        except DoesNotFit:
            return False
        return True

    if fits(most):
        return most
    block_size = plan.config.cache.block_size
    return largest_that(fits, block_size, most, block_size) or 0


def bytes_per_token(plan: Plan) -> int:
    """What one more token adds to a sequence's KV cache, on one rank, within every window."""
    return sum(group.bytes_per_token for group in plan.memory.kv.groups)
