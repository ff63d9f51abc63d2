"""The planned split of a device's memory: every kind of the account, adding up to its total."""

from __future__ import annotations

from collections.abc import Mapping

from server.memory.kinds import MemoryKind
from server.memory.planner.formulas import formulas
from server.plan_cli.make import Plan
from server.units import format_size

ESTIMATED = (MemoryKind.ALLOCATOR_SLACK, MemoryKind.RUNTIME)
_NOT_IN_USE = (MemoryKind.OTHER_PROCESSES, MemoryKind.UNACCOUNTED, MemoryKind.FREE)
RULE_OF_THUMB = 0.80  # weights, of memory in use
_NEAR = 0.05


def memory_split(plan: Plan) -> dict[str, int]:
    """Bytes by kind. ``free`` is what is left: below 0, what is missing."""
    target, planned = plan.target, plan.memory.kinds
    split = {str(kind): planned.get(str(kind), 0) for kind in MemoryKind}
    split[MemoryKind.ALLOCATOR_SLACK] = target.slack_bytes
    split[MemoryKind.RUNTIME] = target.runtime_bytes
    split[MemoryKind.OTHER_PROCESSES] = target.other_bytes
    split[MemoryKind.FREE] = target.total_bytes - sum(split.values())
    return split


def split_formulas(plan: Plan) -> dict[str, str]:
    """How each kind comes about, with the numbers put in."""
    target, accounting = plan.target, plan.target.placement.backend.parts.accounting
    free = target.total_bytes - target.other_bytes
    return {
        **formulas(plan.memory),
        "allocator_slack": (accounting.slack.format(free=free)),
        "runtime": f"{target.runtime_bytes} B, kept for {accounting.runtime} (estimated)",
        "other_processes": (
            "none: the device is planned empty"
            if not target.other_bytes
            else f"total {target.total_bytes} B - available {free} B, now"
        ),
        "unaccounted": "0 by definition: a plan knows what it adds up",
        "free": f"total {target.total_bytes} B - all the others",
    }


def memory_in_use(split: Mapping[str, int]) -> dict[str, int]:
    """Of the split, what the server itself uses: the denominator of ``weights_share``."""
    return {kind: nbytes for kind, nbytes in split.items() if kind not in _NOT_IN_USE}


def weights_share(split: Mapping[str, int]) -> float:
    """Weights, of all the memory that the server itself uses."""
    return split[MemoryKind.WEIGHTS] / sum(memory_in_use(split).values())


def rule_of_thumb(split: Mapping[str, int]) -> str:
    """Whether weights are about 80 % of the memory in use, and what is else."""
    share = weights_share(split)
    in_use = memory_in_use(split)
    total = sum(in_use.values())
    words = f"weights are {100 * share:.0f} % of the memory in use ({format_size(total)})"
    if abs(share - RULE_OF_THUMB) <= _NEAR:
        return f"{words}: the rule of thumb of about 80 % holds here"
    others = {kind: n for kind, n in in_use.items() if kind != MemoryKind.WEIGHTS}
    largest = max(others, key=lambda kind: others[kind])
    return (
        f"{words}: the rule of thumb of about 80 % does not hold here; "
        f"{largest} takes {100 * others[largest] / total:.0f} %"
    )
