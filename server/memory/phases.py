"""A program's bytes: which intermediates are alive together at each moment of a step. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from server.memory.layer_program import (
    Operation,
    Value,
    embedding_program,
    given,
    last_reads,
    layer_program,
)
from weights.spec import ModelSpec, NormPlacement

Tensors = tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Phase:
    """What is alive at one moment of a step: (name, bytes) of each tensor."""

    name: str
    tensors: Tensors

    @property
    def nbytes(self) -> int:
        return sum(nbytes for _, nbytes in self.tensors)


class Footprint(Protocol):
    """What the operations of a backend hold, in bytes, at one size of a step."""

    def bytes_of(self, step: Operation, value: Value) -> int:
        """What ``value``, which ``step`` wrote, keeps alive."""

    def moments(self, step: Operation) -> tuple[Phase, ...]:
        """The moments of ``step``: each what is alive then beside what was before it began. Those
        that hold no more than another may be left out."""


def forward_phases(model: ModelSpec, footprint: Footprint) -> Iterator[Phase]:
    """Every moment from the tokens to what the last layer leaves, of a model whose layers are
    alike: one is added up."""
    embedding = embedding_program(model)
    yield from add_up(embedding, footprint)
    yield from add_up(layer_program(model), footprint, before=embedding)


def add_up(
    program: Sequence[Operation], footprint: Footprint, before: Sequence[Operation] = ()
) -> Iterator[Phase]:
    """Every moment of ``program``, in order, with all that is alive then.

    What the program is given has the size of what it hands on under that name: the plan is of a
    layer between others. What no layer makes has the size that the program ``before`` gave it.
    """
    sizes = {
        value.name: footprint.bytes_of(step, value)
        for step in (*before, *program)
        for value in step.writes
    }
    alive = {name: sizes[name] for name in given(program)}
    for step, dying in zip(program, last_reads(program), strict=True):
        held = tuple(alive.items())
        for moment in footprint.moments(step):
            yield Phase(moment.name, (*held, *moment.tensors))
        for name in dying:
            del alive[name]
        alive |= {value.name: footprint.bytes_of(step, value) for value in step.writes}


def query_factors(tokens: int) -> Tensors:
    """Of each position, where queries are scaled by it: how many lengths it is away, and factors
    made of that."""
    return (("factors", 16 * tokens),)


def logit_phases(
    model: ModelSpec,
    *,
    tokens: int,
    rows: int,
    element_bytes: int,
    final_norm: Tensors,
    logits: Tensors,
    logprobs: Tensors,
    sample: Tensors,
) -> Iterator[Phase]:
    """Every moment from what the last layer leaves to tokens: ``rows`` rows, those that are scored
    and those that are sampled, are picked out, normalised, multiplied, reported and drawn from.
    The tensors are what a backend holds beside the rows."""
    row = model.hidden_size * element_bytes
    stream = [("all_hidden", tokens * row)]
    if model.norm.placement is not NormPlacement.POST and not model.stream_scale:
        stream.append(("all_residual", tokens * row))
    yield Phase("final_norm", (*stream, *final_norm))
    if model.embedding_size:
        logits = (*logits, ("projected", rows * model.embedding_size * element_bytes))
    for name, held in (("logits", logits), ("logprobs", logprobs), ("sample", sample)):
        yield Phase(name, (("picked", rows * row), *held))


def expert_phases(model: ModelSpec, *, tokens: int, element_bytes: int) -> tuple[Phase, ...]:
    """Of a layer whose MLP is a mixture of experts; none for a model without one.

    Every token passes ``chosen`` experts: what they make is held once a token and expert until it
    is weighed and added up.
    """
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
