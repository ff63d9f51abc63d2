"""Plans as tests ask for them: what is not in question is left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from server.plan_cli.answer import answer
from server.plan_cli.make import Plan, PlanOptions, make_plan
from server.plan_cli.text import plan_text


def plan(
    model: str | Path, device: str = "h200", kv: str | None = None, ranks: int = 1, **flags: str
) -> Plan:
    """Of a preset or a folder on a device; ``flags`` are options of the server by their names."""
    named = {name.replace("_", "-"): value for name, value in flags.items()}
    return make_plan(PlanOptions(str(model), None, device, kv, ranks, named), {})


def told(model: str, *of: Any, explain: bool = False, **flags: str) -> dict[str, Any]:
    """What a plan answers in JSON."""
    return answer(plan(model, *of, **flags), explain=explain)


def text_of(model: str, *of: Any, **flags: str) -> str:
    """What a plan answers a person who asks for explanations."""
    made = plan(model, *of, **flags)
    return plan_text(made, answer(made, explain=True))
