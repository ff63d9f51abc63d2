"""Bytes of a step's intermediate tensors in a layer whose MLP is a mixture of experts. No torch.

As server.memory.intermediates. Every token passes ``chosen`` experts: what they make is held once a
token and expert until it is weighed and added up.
"""

from __future__ import annotations

from server.memory.intermediates import Phase
from weights.spec import ModelSpec


def expert_phases(model: ModelSpec, *, tokens: int, element_bytes: int) -> tuple[Phase, ...]:
    """The phases of a mixture; none for a model without one."""
    experts = model.experts
    if experts is None:
        return ()
    passes = tokens * experts.chosen
    hidden = tokens * model.hidden_size * element_bytes
    inner = passes * experts.intermediate_size * element_bytes
    alive = (("residual", hidden), ("normed", hidden), ("inner", inner))
    routing = ("routing", 4 * tokens * experts.count + 16 * passes)  # scores; ids and weights
    up = ("up", (2 if model.mlp.gated else 1) * inner)
    outputs = ("expert_outputs", passes * model.hidden_size * element_bytes)
    return (
        Phase("experts_activation", (*alive, routing, up)),
        Phase("experts_down", (*alive, routing, outputs, ("hidden", hidden))),
    )
