"""ModelSpec -> every parameter, unfused, in the order in which a forward pass meets them.

Matrices are [out, in]. A tied unembedding is no parameter of its own: the embedding appears once.
The loader, the planner, the accountant and the synthetic checkpoints all read this one list.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from math import prod

from weights.formats import get_quantised, tensor_bytes
from weights.spec import ModelSpec, PositionKind


class Component(StrEnum):
    """What a parameter is for. Norms, biases and positions are no matrices of the census."""

    EMBEDDING = "embedding"
    KEY = "key"
    QUERY = "query"
    VALUE = "value"
    OUTPUT = "output"
    GATE = "gate"
    UP = "up"
    DOWN = "down"
    UNEMBEDDING = "unembedding"
    POSITION = "position"
    NORM = "norm"
    BIAS = "bias"


# What a quantised format holds. The unembedding keeps the plain format, tied or not: every logit
# depends on it directly, and it is one matrix among hundreds.
QUANTISABLE = frozenset(
    {
        Component.QUERY,
        Component.KEY,
        Component.VALUE,
        Component.OUTPUT,
        Component.GATE,
        Component.UP,
        Component.DOWN,
    }
)


class Split(StrEnum):
    """How a parameter divides over tensor-parallel ranks."""

    REPLICATED = "replicated"
    ROWS = "rows"  # output channels
    COLUMNS = "columns"  # input channels; partial sums are added up
    VOCABULARY = "vocabulary"  # rows, by token id
    HEADS = "heads"  # rows, by whole heads


@dataclass(frozen=True, slots=True)
class Parameter:
    name: str
    shape: tuple[int, ...]
    component: Component
    split: Split

    @property
    def num_elements(self) -> int:
        return prod(self.shape)

    def num_bytes(self, format: str, quantization: str | None = None) -> int:
        """Bytes as held: matrices in ``quantization`` where one is given, all else in ``format``.

        Raises ValueError for a format that there is not.
        """
        held = held_format(self.component, format, quantization)
        if held == format:
            return tensor_bytes(self.shape, format)
        return get_quantised(held).matrix_bytes(*self.shape)


def held_format(component: str, format: str, quantization: str | None) -> str:
    """The format that a component's parameters are held in."""
    return format if quantization is None or component not in QUANTISABLE else quantization


def inventory(spec: ModelSpec) -> tuple[Parameter, ...]:
    """Every parameter of ``spec`` exactly once."""
    return tuple(_parameters(spec))


def num_parameters(spec: ModelSpec) -> int:
    """Elements of all parameters, a tied unembedding counted once."""
    return sum(parameter.num_elements for parameter in _parameters(spec))


def _parameters(spec: ModelSpec) -> Iterator[Parameter]:
    vocabulary = (spec.vocab_size, spec.hidden_size)
    yield Parameter("embedding.weight", vocabulary, Component.EMBEDDING, Split.VOCABULARY)
    if spec.position is PositionKind.LEARNED:
        table = (spec.max_positions, spec.hidden_size)
        yield Parameter("position_embedding.weight", table, Component.POSITION, Split.REPLICATED)
    for index in range(spec.num_layers):
        layer = f"layers.{index}"
        yield from _norm(f"{layer}.attention_norm", spec)
        yield from _attention(f"{layer}.attention", spec)
        yield from _norm(f"{layer}.mlp_norm", spec)
        yield from _mlp(f"{layer}.mlp", spec)
    yield from _norm("final_norm", spec)
    if not spec.tied_unembedding:
        yield Parameter("unembedding.weight", vocabulary, Component.UNEMBEDDING, Split.VOCABULARY)


def _norm(name: str, spec: ModelSpec) -> Iterator[Parameter]:
    shape = (spec.hidden_size,)
    yield Parameter(f"{name}.weight", shape, Component.NORM, Split.REPLICATED)
    if spec.norm.has_bias:
        yield Parameter(f"{name}.bias", shape, Component.NORM, Split.REPLICATED)


def _attention(name: str, spec: ModelSpec) -> Iterator[Parameter]:
    attention = spec.attention
    hidden, bias = spec.hidden_size, attention.qkv_bias
    query, kv = attention.query_size, attention.kv_size
    yield from _linear(f"{name}.query", query, hidden, Component.QUERY, Split.HEADS, bias)
    yield from _linear(f"{name}.key", kv, hidden, Component.KEY, Split.HEADS, bias)
    yield from _linear(f"{name}.value", kv, hidden, Component.VALUE, Split.HEADS, bias)
    yield from _linear(
        f"{name}.output", hidden, query, Component.OUTPUT, Split.COLUMNS, attention.output_bias
    )


def _mlp(name: str, spec: ModelSpec) -> Iterator[Parameter]:
    hidden, inner, bias = spec.hidden_size, spec.mlp.intermediate_size, spec.mlp.bias
    if spec.mlp.gated:
        yield from _linear(f"{name}.gate", inner, hidden, Component.GATE, Split.ROWS, bias)
    yield from _linear(f"{name}.up", inner, hidden, Component.UP, Split.ROWS, bias)
    yield from _linear(f"{name}.down", hidden, inner, Component.DOWN, Split.COLUMNS, bias)


def _linear(
    name: str, rows: int, columns: int, component: Component, split: Split, bias: bool
) -> Iterator[Parameter]:
    yield Parameter(f"{name}.weight", (rows, columns), component, split)
    if bias:
        # A bias follows its rows; where the columns are split, every rank holds all of it.
        bias_split = Split.REPLICATED if split is Split.COLUMNS else split
        yield Parameter(f"{name}.bias", (rows,), Component.BIAS, bias_split)
