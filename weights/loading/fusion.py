"""How parameters are held: which of them share one matrix, and under what name. No torch.

embedding_projection         where the embedding has a width of its own
layer_input_projection       where layers have inputs of their own, as two more in each:
layers.{i}.layer_input.gate, layers.{i}.layer_input.projection
layers.{i}.attention.qkv     rows: query, key, value, of these what the layer has
layers.{i}.attention.output
layers.{i}.mlp.gate_up       rows: gate, up (gated)    layers.{i}.mlp.up (not gated)
layers.{i}.mlp.down
unembedding_projection       as embedding_projection
unembedding                  tied: the embedding's own storage
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from weights.inventory import inventory
from weights.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class FusedLinear:
    """``parts`` are names of the inventory without ``.weight`` and ``.bias``, in row order."""

    name: str
    parts: tuple[str, ...]


def fused_linears(spec: ModelSpec) -> tuple[FusedLinear, ...]:
    """Every matrix that is multiplied, in the order of the forward pass; an unembedding that is
    tied is left out, since it holds nothing of its own."""
    return tuple(_linears(spec))


def plain_tensors(spec: ModelSpec) -> tuple[str, ...]:
    """Inventory names of what is held as a plain tensor, no matrix that is multiplied."""
    multiplied = {part for linear in fused_linears(spec) for part in linear.parts}
    names = (parameter.name for parameter in inventory(spec))
    return tuple(name for name in names if name.rpartition(".")[0] not in multiplied)


def held_name(parameter: str) -> str:
    """Name of a plain tensor as the model asks for it: tables lose their ``.weight``."""
    return _TABLES.get(parameter, parameter)


_TABLES = {
    "embedding.weight": "embedding",
    "position_embedding.weight": "position_embedding",
    "layer_embedding.weight": "layer_embedding",
}


def _linears(spec: ModelSpec) -> Iterator[FusedLinear]:
    if spec.embedding_size:
        yield FusedLinear("embedding_projection", ("embedding_projection",))
    if spec.layer_input is not None:
        yield FusedLinear("layer_input_projection", ("layer_input_projection",))
    for index in range(spec.num_layers):
        attention, mlp = f"layers.{index}.attention", f"layers.{index}.mlp"
        qkv = tuple(f"{attention}.{part}" for part in spec.layer_attention(index).projections)
        yield FusedLinear(f"{attention}.qkv", qkv)
        yield FusedLinear(f"{attention}.output", (f"{attention}.output",))
        if spec.mlp.gated:
            yield FusedLinear(f"{mlp}.gate_up", (f"{mlp}.gate", f"{mlp}.up"))
        else:
            yield FusedLinear(f"{mlp}.up", (f"{mlp}.up",))
        yield FusedLinear(f"{mlp}.down", (f"{mlp}.down",))
        if spec.layer_input is not None:
            for part in ("gate", "projection"):
                name = f"layers.{index}.layer_input.{part}"
                yield FusedLinear(name, (name,))
    if spec.embedding_size:
        yield FusedLinear("unembedding_projection", ("unembedding_projection",))
    if not spec.tied_unembedding:
        yield FusedLinear("unembedding", ("unembedding",))
