"""The forward pass, written once, as data: the decoder executes it and a memory plan adds it up.

A program is a list of steps, each one operation on values that have names. A value is alive from
the step that writes it to the last one that reads it: there the decoder drops it, and so far a plan
counts it. What an operation holds inside itself is its backend's matter (server.memory.phases).

Letters: T tokens in the step, D hidden size, Hq and Hkv query and key heads, hd head_dim, I
intermediate size. Every value is [T, channels]. No torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from weights import spec
from weights.spec import ModelSpec, NormPlacement, ParallelBlock, PositionKind


@dataclass(frozen=True, slots=True)
class Value:
    name: str
    channels: int


@dataclass(frozen=True, slots=True)
class Step:
    """One operation. ``name`` is what a plan calls it, and is told once in a program; ``reads`` are
    names of values in the order of its arguments, ``writes`` what it makes, in order too."""

    name: str
    reads: tuple[str, ...]
    writes: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Embed(Step):
    """Rows of the embedding, and of the table of positions where these are learned."""

    learned_positions: bool


@dataclass(frozen=True, slots=True)
class AddNorm(Step):
    """(hidden, residual) -> their sum, normalised by the layer's ``weights``, and, where a later
    step reads it, the sum."""

    weights: str


@dataclass(frozen=True, slots=True)
class Norm(Step):
    """One value, normalised by the layer's ``weights``, or before the layers by the model's."""

    weights: str


@dataclass(frozen=True, slots=True)
class QkNorm(Step):
    """[T, (Hq + 2 Hkv) hd] -> queries [T, Hq hd] and keys [T, Hkv hd], each normalised over all of
    its heads' channels together, or head by head. RMS norms of heads that share their weights are
    a part of Attend."""


@dataclass(frozen=True, slots=True)
class Add(Step):
    """The sum of two values; of one alone where the other is not there, as before the first layer
    the residual is not."""


@dataclass(frozen=True, slots=True)
class Scale(Step):
    """A value times ``factor``."""

    factor: float


@dataclass(frozen=True, slots=True)
class StreamScale(Step):
    """The stream times the layer's own number ``weight``, in place."""

    weight: str


@dataclass(frozen=True, slots=True)
class LayerInputs(Step):
    """The embedding, unchanged, and the inputs of all layers side by side, [T, layers P]: its
    product with ``layer_input_projection``, each layer's channels normalised, and the tokens' rows
    of a table of their own, both halves weighed alike."""


@dataclass(frozen=True, slots=True)
class WeighInput(Step):
    """The activation of a gate [T, P] times the layer's own channels of all layers' inputs."""


@dataclass(frozen=True, slots=True)
class ValueNorm(Step):
    """[T, channels of the layer's projections] -> values [T, Hkv hd], each head normalised without
    weights: of the keys, before their own norm, where the values have no projection."""


@dataclass(frozen=True, slots=True)
class Clip(Step):
    """A value clipped to -limit .. limit, in place."""

    limit: float


@dataclass(frozen=True, slots=True)
class ScaleQueries(Step):
    """[T, (Hq + 2 Hkv) hd]: its queries times a factor of their position, in place."""

    scale: spec.QueryScale


@dataclass(frozen=True, slots=True)
class Product(Step):
    """[T, columns] times the layer's matrix ``matrix``, with its bias where it has one."""

    matrix: str
    columns: int


@dataclass(frozen=True, slots=True)
class Attend(Step):
    """[T, (Hq + 2 Hkv) hd] -> [T, Hq hd]: normalises the heads of queries and keys where the model
    does, turns them by their positions, in place, writes keys and values into the cache, and
    attends over it. Queries and keys that QkNorm made are read beside."""


@dataclass(frozen=True, slots=True)
class Activate(Step):
    """The MLP's activation, of the gate times the other half where it is gated."""


LayerOperation = (
    AddNorm
    | Norm
    | QkNorm
    | ValueNorm
    | WeighInput
    | Add
    | Scale
    | StreamScale
    | Clip
    | ScaleQueries
    | Product
    | Attend
    | Activate
)
Operation = Embed | LayerInputs | LayerOperation
LayerProgram = tuple[LayerOperation, ...]
EmbeddingProgram = tuple[Embed | LayerInputs | Product | Add | Scale | Norm, ...]

_OUTPUT_NORMS = (NormPlacement.OUTPUT, NormPlacement.BOTH)


def embedding_program(model: ModelSpec) -> EmbeddingProgram:
    """What comes before the layers: ``hidden``, and no residual yet."""
    learned = model.position is PositionKind.LEARNED
    hidden = Value("hidden", model.hidden_size)
    embed: EmbeddingProgram = (Embed("embedding", (), (hidden,), learned),)
    if model.embedding_size:
        rows, positions = Value("rows", model.embedding_size), Value("positions", hidden.channels)
        embed = (
            Embed("embedding", (), (rows,), learned_positions=False),
            Product(
                "embedding_projection", ("rows",), (hidden,), "embedding_projection", rows.channels
            ),
        )
        if learned:
            embed += (
                Embed("positions", (), (positions,), learned_positions=False),
                Add("embedding_sum", ("hidden", "positions"), (hidden,)),
            )
    if model.embedding_scale != 1.0:
        embed += (Scale("embedding_scale", ("hidden",), (hidden,), model.embedding_scale),)
    if model.embedding_norm:
        embed += (Norm("embedding_norm", ("hidden",), (hidden,), "embedding_norm"),)
    if model.layer_input is not None:
        inputs = Value("layer_inputs", model.num_layers * model.layer_input.size)
        embed += (LayerInputs("layer_inputs", ("hidden",), (hidden, inputs)),)
    return embed


def layer_program(model: ModelSpec) -> LayerProgram:
    """A decoder layer. ``hidden``, what is to be added to the residual stream next, and
    ``residual``, the stream without it, go in, and come out for the next layer; ``hidden`` alone
    where sums are normalised, which is the whole stream there."""
    if model.stream_scale:
        return _layer_of_sums(model)
    if model.parallel is ParallelBlock.NONE:
        return (*_block(model, "attention", _attention), *_block(model, "mlp", _mlp))
    own_norm = model.parallel is ParallelBlock.TWO_NORMS
    return (
        *_add_norm(model, "attention_norm"),
        *_attention(model, "normed", "attention_out"),
        *(_norm(model, "mlp_norm", "residual", "normed") if own_norm else ()),
        *_mlp(model, "normed", "hidden"),
        Add("both", ("attention_out", "hidden"), (Value("hidden", model.hidden_size),)),
        *_scaled(model, "layer_scale"),
    )


def _layer_of_sums(model: ModelSpec) -> LayerProgram:
    """A layer whose stream is scaled behind it, so that it ends with the sum: ``hidden`` alone goes
    in and comes out."""
    stream = Value("hidden", model.hidden_size)
    outputs = model.norm.placement in _OUTPUT_NORMS
    made = (Value("normed", model.hidden_size), Value("residual", model.hidden_size))
    return (
        *_norm(model, "attention_norm", "hidden", "normed"),
        *_attention(model, "normed", "out"),
        *(_norm(model, "attention_output_norm", "out", "out") if outputs else ()),
        AddNorm("mlp_norm", ("out", "hidden"), made, "mlp_norm"),
        *_mlp(model, "normed", "hidden"),
        *(_norm(model, "mlp_output_norm", "hidden", "hidden") if outputs else ()),
        Add("stream", ("hidden", "residual"), (stream,)),
        *_layer_input(model, stream),
        StreamScale("stream_scale", ("hidden",), (stream,), "stream_scale"),
    )


def _layer_input(model: ModelSpec, stream: Value) -> LayerProgram:
    if model.layer_input is None:
        return ()
    size = model.layer_input.size
    gate, out = Value("gate", size), Value("out", model.hidden_size)
    return (
        Product("layer_gate", ("hidden",), (gate,), "layer_input.gate", model.hidden_size),
        WeighInput("layer_input", ("gate", "layer_inputs"), (gate,)),
        Product("layer_projection", ("gate",), (out,), "layer_input.projection", size),
        *_norm(model, "layer_input_norm", "out", "out"),
        Add("layer_stream", ("out", "hidden"), (stream,)),
    )


def _block(
    model: ModelSpec, name: str, body: Callable[[ModelSpec, str, str], LayerProgram]
) -> LayerProgram:
    """Attention or MLP with its norms: of its input, its output, both, or of their sum."""
    if model.norm.placement is NormPlacement.POST:
        norm, normed = f"{name}_norm", Value("hidden", model.hidden_size)
        return (
            *body(model, "hidden", "out"),
            *_scaled(model, f"{name}_scale", "out"),
            AddNorm(norm, ("out", "hidden"), (normed,), norm),
        )
    if model.norm.placement is NormPlacement.OUTPUT:
        stream = (Value("residual", model.hidden_size),)
        enter: LayerProgram = (Add(f"{name}_input", ("hidden", "residual"), stream),)
        reads = "residual"
    else:
        enter, reads = _add_norm(model, f"{name}_norm"), "normed"
    outputs = model.norm.placement in _OUTPUT_NORMS
    return (
        *enter,
        *body(model, reads, "hidden"),
        *(_norm(model, f"{name}_output_norm", "hidden", "hidden") if outputs else ()),
        *_scaled(model, f"{name}_scale"),
    )


def _add_norm(model: ModelSpec, name: str) -> LayerProgram:
    made = (Value("normed", model.hidden_size), Value("residual", model.hidden_size))
    return (AddNorm(name, ("hidden", "residual"), made, name),)


def _norm(model: ModelSpec, name: str, reads: str, writes: str) -> LayerProgram:
    return (Norm(name, (reads,), (Value(writes, model.hidden_size),), name),)


def _scaled(model: ModelSpec, name: str, value: str = "hidden") -> LayerProgram:
    if model.residual_scale == 1.0:
        return ()
    scaled = (Value(value, model.hidden_size),)
    return (Scale(name, (value,), scaled, model.residual_scale),)


def attend_normalises(model: ModelSpec) -> bool:
    """Whether Attend normalises queries and keys: other norms of them are a QkNorm."""
    return model.attention.qk_norm is spec.QkNorm.HEAD and model.norm.kind is spec.NormKind.RMS


def _attention(model: ModelSpec, reads: str, writes: str) -> LayerProgram:
    heads, hidden = model.attention, model.hidden_size
    qkv, value = Value("qkv", sum(heads.projections.values())), Value("value", heads.kv_size)
    attended, out = Value("attended", heads.query_size), Value(writes, hidden)
    normed = (Value("query", heads.query_size), Value("key", heads.kv_size))
    apart = heads.qk_norm is not spec.QkNorm.NONE and not attend_normalises(model)
    clip, scale = heads.qkv_clip, heads.query_scale
    attended_of = ("qkv", *(("query", "key") if apart else ()))
    normed_values = heads.value_norm and heads.own_kv
    if normed_values:
        attended_of += ("value",)
    return (
        Product("qkv", (reads,), (qkv,), "attention.qkv", hidden),
        *((Clip("qkv_clip", ("qkv",), (qkv,), clip),) if clip else ()),
        *((ScaleQueries("query_scale", ("qkv",), (qkv,), scale),) if scale else ()),
        *((QkNorm("qk_norm", ("qkv",), normed),) if apart else ()),
        *((ValueNorm("value_norm", ("qkv",), (value,)),) if normed_values else ()),
        Attend("attention", attended_of, (attended,)),
        Product("attention_output", ("attended",), (out,), "attention.output", heads.query_size),
    )


def _mlp(model: ModelSpec, reads: str, writes: str) -> LayerProgram:
    mlp, hidden = model.mlp, model.hidden_size
    inner, out = Value("inner", mlp.intermediate_size), Value(writes, hidden)
    up = Value("up", (2 if mlp.gated else 1) * mlp.intermediate_size)
    matrix = "mlp.gate_up" if mlp.gated else "mlp.up"
    return (
        Product("up", (reads,), (up,), matrix, hidden),
        Activate("activation", ("up",), (inner,)),
        Product("down", ("inner",), (out,), "mlp.down", mlp.intermediate_size),
    )


def last_reads(program: Sequence[Step]) -> tuple[frozenset[str], ...]:
    """For each step the values that it reads and nobody does after it: there they die.

    What a program reads before it writes it is given to it, and what bears such a name at its end
    is handed on, to the next layer.
    """
    wanted = set(given(program))
    dying: list[frozenset[str]] = []
    for step in reversed(program):
        wanted -= {value.name for value in step.writes}
        dying.append(frozenset(step.reads) - wanted)
        wanted |= set(step.reads)
    return tuple(reversed(dying))


def given(program: Sequence[Step]) -> tuple[str, ...]:
    """The values that a program reads before it writes them, in the order of their first use."""
    names: dict[str, None] = {}
    written: set[str] = set()
    for step in program:
        names |= dict.fromkeys(name for name in step.reads if name not in written)
        written |= {value.name for value in step.writes}
    return tuple(names)
