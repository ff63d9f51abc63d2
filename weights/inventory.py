"""ModelSpec -> every parameter, unfused, in the order in which a forward pass meets them.

Matrices are [out, in]. A tied unembedding is not a parameter: the embedding appears once.
The loader, the planner, the accountant and the synthetic checkpoints all read this one list.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache
from math import prod
from types import MappingProxyType

from weights.formats import get_quantised, tensor_bytes
from weights.spec import (
    Activation,
    AttentionSpec,
    ExpertsSpec,
    LatentSpec,
    LayerInputSpec,
    ModelSpec,
    NormPlacement,
    ParallelBlock,
    PositionKind,
    QkNorm,
)


class Component(StrEnum):
    """What a parameter is for. Norms, biases and positions are no matrices of the census; the
    numbers of a learned activation count as biases."""

    EMBEDDING = "embedding"
    LAYER_INPUTS = "layer_inputs"  # the table of what layers are given beside the stream
    KEY = "key"
    QUERY = "query"
    VALUE = "value"
    LATENT = "latent"
    OUTPUT = "output"
    GATE = "gate"
    UP = "up"
    DOWN = "down"
    ROUTER = "router"
    UNEMBEDDING = "unembedding"
    PROJECTION = "projection"  # between the tables of tokens and the hidden size
    POSITION = "position"
    NORM = "norm"
    BIAS = "bias"


# What a quantised format holds, unless a backend says otherwise. The unembedding keeps the plain
# format, tied or not: every logit depends on it directly, and it is one matrix among hundreds.
QUANTISABLE = frozenset(
    {
        Component.QUERY,
        Component.KEY,
        Component.VALUE,
        Component.LATENT,
        Component.OUTPUT,
        Component.GATE,
        Component.UP,
        Component.DOWN,
    }
)


# What xIELU has in each layer, in the order of its arguments.
XIELU_NUMBERS = ("alpha_p", "alpha_n", "beta", "eps")


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
    heads: int = 0  # rows are this many whole heads, where they are split so
    unit_offset: bool = False  # stored less 1, which is added where it is used

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


def held_format(
    component: str,
    format: str,
    quantization: str | None,
    quantised: Container[str] = QUANTISABLE,
) -> str:
    """The format that a component's parameters are held in; ``quantised`` are the components that
    a quantised format holds."""
    return format if quantization is None or component not in quantised else quantization


def inventory(spec: ModelSpec) -> tuple[Parameter, ...]:
    """Every parameter of ``spec`` exactly once."""
    return tuple(_parameters(spec, range(spec.num_layers)))


@lru_cache(maxsize=16)  # a plan asks for one model's at every size that it tries
def tally(spec: ModelSpec) -> Mapping[Parameter, int]:
    """Parameters by what they are, and how many are alike: all but their names.

    One layer of each kind and one expert are listed and multiplied, so that a plan of a model of
    100 layers with 100 experts costs no more than one of a small one.
    """
    alike: dict[Parameter, int] = {}
    layers = Counter((spec.has_experts(i), spec.layer_attention(i)) for i in range(spec.num_layers))
    first = {}
    for layer in reversed(range(spec.num_layers)):
        first[spec.has_experts(layer), spec.layer_attention(layer)] = layer
    for kind, times in sorted(layers.items(), key=lambda item: item[0][0]):
        for parameter in _layer(spec, first[kind], num_experts=0):
            _count(alike, parameter, times)
        if spec.experts is not None and kind[0]:
            for parameter in _mlp("", spec, spec.experts.intermediate_size):
                _count(alike, parameter, times * spec.experts.count)
    for parameter in _parameters(spec, ()):
        _count(alike, parameter, 1)
    return MappingProxyType(alike)


def num_parameters(spec: ModelSpec) -> int:
    """Elements of all parameters, a tied unembedding counted once."""
    return sum(times * parameter.num_elements for parameter, times in tally(spec).items())


def num_active_parameters(spec: ModelSpec) -> int:
    """Elements that one token passes: all but the experts that its router does not choose."""
    experts = spec.experts
    if experts is None:
        return num_parameters(spec)
    layers = sum(spec.has_experts(layer) for layer in range(spec.num_layers))
    one = sum(parameter.num_elements for parameter in _mlp("", spec, experts.intermediate_size))
    return num_parameters(spec) - layers * (experts.count - experts.chosen) * one


def _count(alike: dict[Parameter, int], parameter: Parameter, times: int) -> None:
    nameless = replace(parameter, name="")
    alike[nameless] = alike.get(nameless, 0) + times


def _parameters(spec: ModelSpec, layers: Iterable[int]) -> Iterator[Parameter]:
    """What stands before the layers, those ``layers``, and what comes after."""
    vocabulary = (spec.vocab_size, spec.table_width)
    yield Parameter("embedding.weight", vocabulary, Component.EMBEDDING, Split.VOCABULARY)
    if spec.embedding_size:
        yield from _projection("embedding_projection", spec.hidden_size, spec.embedding_size)
    if spec.layer_input is not None:
        yield from _layer_inputs(spec, spec.layer_input)
    if spec.position is PositionKind.LEARNED:
        table = (spec.position_offset + spec.max_positions, spec.hidden_size)
        yield Parameter("position_embedding.weight", table, Component.POSITION, Split.REPLICATED)
    if spec.embedding_norm:
        yield from _norm("embedding_norm", spec)
    for layer in layers:
        yield from _layer(spec, layer, spec.experts.count if spec.experts else 0)
    if spec.norm.placement is not NormPlacement.POST:
        yield from _norm("final_norm", spec)
    if spec.embedding_size:
        yield from _projection("unembedding_projection", spec.embedding_size, spec.hidden_size)
    if not spec.tied_unembedding:
        yield Parameter("unembedding.weight", vocabulary, Component.UNEMBEDDING, Split.VOCABULARY)
    if spec.unembedding_bias:
        yield Parameter("unembedding.bias", vocabulary[:1], Component.BIAS, Split.VOCABULARY)


def _layer_inputs(spec: ModelSpec, inputs: LayerInputSpec) -> Iterator[Parameter]:
    """What all layers' inputs come from."""
    table, width = "layer_embedding.weight", spec.num_layers * inputs.size
    shape = (inputs.vocab_size, width)
    yield Parameter(table, shape, Component.LAYER_INPUTS, Split.REPLICATED)
    yield from _projection("layer_input_projection", width, spec.hidden_size)
    weight = "layer_input_norm.weight"
    yield Parameter(weight, (inputs.size,), Component.NORM, Split.REPLICATED)


def _projection(name: str, rows: int, columns: int) -> Iterator[Parameter]:
    return _linear(name, rows, columns, Component.PROJECTION, Split.REPLICATED, bias=False)


def _layer(spec: ModelSpec, index: int, num_experts: int) -> Iterator[Parameter]:
    """With so many of its experts, where it has any."""
    spec = spec.as_layer(index)
    name, placement = f"layers.{index}", spec.norm.placement
    inputs = placement is not NormPlacement.OUTPUT
    outputs = placement in (NormPlacement.OUTPUT, NormPlacement.BOTH)
    if inputs:
        yield from _norm(f"{name}.attention_norm", spec)
    yield from _attention(f"{name}.attention", spec)
    if outputs:
        yield from _norm(f"{name}.attention_output_norm", spec)
    if inputs and spec.parallel is not ParallelBlock.SHARED_NORM:
        yield from _norm(f"{name}.mlp_norm", spec)
    if spec.experts is not None and spec.has_experts(index):
        yield from _mixture(f"{name}.mlp", spec, spec.experts, num_experts)
    else:
        yield from _mlp(f"{name}.mlp", spec, spec.mlp.intermediate_size)
    if outputs:
        yield from _norm(f"{name}.mlp_output_norm", spec)
    if spec.layer_input is not None:
        size, hidden = spec.layer_input.size, spec.hidden_size
        yield from _projection(f"{name}.layer_input.gate", size, hidden)
        yield from _projection(f"{name}.layer_input.projection", hidden, size)
        yield from _norm(f"{name}.layer_input_norm", spec)
    if spec.stream_scale:
        yield Parameter(f"{name}.stream_scale", (1,), Component.NORM, Split.REPLICATED)


def _norm(name: str, spec: ModelSpec) -> Iterator[Parameter]:
    shape, offset = (spec.hidden_size,), spec.norm.unit_offset
    if spec.norm.weight:
        weight = f"{name}.weight"
        yield Parameter(weight, shape, Component.NORM, Split.REPLICATED, unit_offset=offset)
    if spec.norm.has_bias:
        yield Parameter(f"{name}.bias", shape, Component.NORM, Split.REPLICATED)


def _attention(name: str, spec: ModelSpec) -> Iterator[Parameter]:
    attention, hidden = spec.attention, spec.hidden_size
    if attention.latent is None:
        yield from _query_key_value(name, spec)
    else:
        yield from _latent(name, spec, attention.latent)
    yield from _qk_norm(name, attention, spec.norm.unit_offset)
    if attention.sinks:
        heads = attention.num_query_heads
        yield Parameter(f"{name}.sinks", (heads,), Component.BIAS, Split.HEADS, heads)
    attended, bias = attention.attended_size, attention.output_bias
    yield from _linear(f"{name}.output", hidden, attended, Component.OUTPUT, Split.COLUMNS, bias)


def _query_key_value(name: str, spec: ModelSpec) -> Iterator[Parameter]:
    attention = spec.attention
    hidden, bias = spec.hidden_size, attention.qkv_bias
    for part, rows in attention.projections.items():
        component, heads = Component(part), rows // attention.head_dim
        yield from _linear(f"{name}.{part}", rows, hidden, component, Split.HEADS, bias, heads)


def _latent(name: str, spec: ModelSpec, latent: LatentSpec) -> Iterator[Parameter]:
    """The matrices that narrow, which every rank holds, and those that widen, a part a head."""
    attention, hidden = spec.attention, spec.hidden_size
    heads, query_from = attention.num_query_heads, hidden
    if latent.query_rank:
        query_from = latent.query_rank
        yield from _narrow(f"{name}.query_latent", latent.query_rank, hidden, latent.query_rank)
    rows = latent.kv_rank + latent.rope_dim
    yield from _narrow(f"{name}.kv_latent", rows, hidden, latent.kv_rank)
    for part, component, channels, columns in (
        ("query", Component.QUERY, attention.head_dim, query_from),
        ("key", Component.KEY, attention.head_dim - latent.rope_dim, latent.kv_rank),
        ("value", Component.VALUE, latent.value_dim, latent.kv_rank),
    ):
        shape = (heads * channels, columns)
        yield Parameter(f"{name}.{part}.weight", shape, component, Split.HEADS, heads)


def _narrow(name: str, rows: int, hidden: int, normalised: int) -> Iterator[Parameter]:
    yield Parameter(f"{name}.weight", (rows, hidden), Component.LATENT, Split.REPLICATED)
    yield Parameter(f"{name}_norm.weight", (normalised,), Component.NORM, Split.REPLICATED)


def _qk_norm(name: str, attention: AttentionSpec, offset: bool) -> Iterator[Parameter]:
    if attention.qk_norm is QkNorm.NONE:
        return
    parts = (("query", attention.num_query_heads), ("key", attention.num_kv_heads))
    for part, heads in parts:
        if part not in attention.projections:
            continue
        weight = f"{name}.{part}_norm.weight"
        head_dim = attention.head_dim
        if attention.qk_norm is QkNorm.HEAD:
            made = Parameter(
                weight, (head_dim,), Component.NORM, Split.REPLICATED, unit_offset=offset
            )
        else:
            own = attention.qk_norm is QkNorm.EACH_HEAD
            shape = (heads, head_dim) if own else (heads * head_dim,)
            made = Parameter(weight, shape, Component.NORM, Split.HEADS, heads, offset)
        yield made
        if attention.qk_norm_bias:
            yield replace(made, name=f"{name}.{part}_norm.bias", unit_offset=False)


def _mixture(
    name: str, spec: ModelSpec, experts: ExpertsSpec, num_experts: int
) -> Iterator[Parameter]:
    """The router, the first experts, and what each token passes besides."""
    router = (experts.count, spec.hidden_size)
    yield Parameter(f"{name}.router.weight", router, Component.ROUTER, Split.REPLICATED)
    if experts.router_bias:
        yield Parameter(f"{name}.router.bias", router[:1], Component.BIAS, Split.REPLICATED)
    for expert in range(num_experts):
        yield from _mlp(f"{name}.experts.{expert}", spec, experts.intermediate_size)
    if experts.shared_size:
        yield from _mlp(f"{name}.shared", spec, experts.shared_size)
    if experts.shared_gate:
        gate = (1, spec.hidden_size)
        yield Parameter(f"{name}.shared_gate.weight", gate, Component.ROUTER, Split.REPLICATED)


def _mlp(name: str, spec: ModelSpec, inner: int) -> Iterator[Parameter]:
    hidden, bias = spec.hidden_size, spec.mlp.bias
    if spec.mlp.gated:
        yield from _linear(f"{name}.gate", inner, hidden, Component.GATE, Split.ROWS, bias)
    yield from _linear(f"{name}.up", inner, hidden, Component.UP, Split.ROWS, bias)
    if spec.mlp.activation is Activation.XIELU:
        for number in XIELU_NUMBERS:
            yield Parameter(f"{name}.activation.{number}", (1,), Component.BIAS, Split.REPLICATED)
    yield from _linear(f"{name}.down", hidden, inner, Component.DOWN, Split.COLUMNS, bias)


def _linear(
    name: str,
    rows: int,
    columns: int,
    component: Component,
    split: Split,
    bias: bool,
    heads: int = 0,
) -> Iterator[Parameter]:
    yield Parameter(f"{name}.weight", (rows, columns), component, split, heads)
    if bias:
        # A bias follows its rows; where the columns are split, every rank holds all of it.
        whole = split is Split.COLUMNS
        bias_split = Split.REPLICATED if whole else split
        yield Parameter(f"{name}.bias", (rows,), Component.BIAS, bias_split, 0 if whole else heads)
