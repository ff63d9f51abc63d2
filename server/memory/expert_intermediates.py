"""Bytes of a step's intermediate tensors in a layer whose MLP is a mixture of experts. No torch.

As server.memory.intermediates. Every token passes ``chosen`` experts: what they make is held once a
token and expert until it is weighed and added up.
"""

from __future__ import annotations

from dataclasses import replace

from server.memory.phases import Phase
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


def without_experts(model: ModelSpec) -> ModelSpec:
    """Its layers' plain MLP alone: of the first layers, or what every token passes besides."""
    experts = model.experts
    if experts is None:
        return model
    dense = model.mlp.intermediate_size if experts.num_dense_layers else 0
    width = max(dense, experts.shared_size, 1)  # a channel stands for none: no product has none
    return replace(model, mlp=replace(model.mlp, intermediate_size=width))
