"""The forward pass, written once, as data: the decoder executes it and a memory plan adds it up.

A program is a list of steps, each one operation on values that have names. A value is alive from
the step that writes it to the last one that reads it: there the decoder drops it, and so far a plan
counts it. What an operation holds inside itself is its backend's matter (server.memory.phases).

Letters: T tokens in the step, D hidden size, Hq and Hkv query and key heads, hd head_dim, I
intermediate size. Every value is [T, channels]. No torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from weights.spec import ModelSpec, PositionKind


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
class Norm(Step):
    """(hidden, residual) -> their sum, normalised by the layer's ``weights``, and the sum."""

    weights: str


@dataclass(frozen=True, slots=True)
class Product(Step):
    """[T, columns] times the layer's matrix ``matrix``, with its bias where it has one."""

    matrix: str
    columns: int


@dataclass(frozen=True, slots=True)
class Attend(Step):
    """[T, (Hq + 2 Hkv) hd] -> [T, Hq hd]: turns queries and keys by their positions, in place,
    writes keys and values into the cache, and attends over it."""


@dataclass(frozen=True, slots=True)
class Activate(Step):
    """The MLP's activation, of the gate times the other half where it is gated."""


LayerOperation = Norm | Product | Attend | Activate
Operation = Embed | LayerOperation
LayerProgram = tuple[LayerOperation, ...]


def embedding(model: ModelSpec) -> Embed:
    """What comes before the layers."""
    learned = model.position is PositionKind.LEARNED
    return Embed("embedding", (), (Value("hidden", model.hidden_size),), learned)


def layer_program(model: ModelSpec) -> LayerProgram:
    """A decoder layer. ``hidden`` and ``residual`` go in, and come out for the next layer."""
    return (
        *_norm(model, "attention_norm"),
        *_attention(model),
        *_norm(model, "mlp_norm"),
        *_mlp(model),
    )


def _norm(model: ModelSpec, name: str) -> LayerProgram:
    made = (Value("normed", model.hidden_size), Value("residual", model.hidden_size))
    return (Norm(name, ("hidden", "residual"), made, name),)


def _attention(model: ModelSpec) -> LayerProgram:
    heads, hidden = model.attention, model.hidden_size
    qkv = Value("qkv", heads.query_size + 2 * heads.kv_size)
    attended, out = Value("attended", heads.query_size), Value("hidden", hidden)
    return (
        Product("qkv", ("normed",), (qkv,), "attention.qkv", hidden),
        Attend("attention", ("qkv",), (attended,)),
        Product("attention_output", ("attended",), (out,), "attention.output", heads.query_size),
    )


def _mlp(model: ModelSpec) -> LayerProgram:
    mlp, hidden = model.mlp, model.hidden_size
    inner, out = Value("inner", mlp.intermediate_size), Value("hidden", hidden)
    up = Value("up", (2 if mlp.gated else 1) * mlp.intermediate_size)
    matrix = "mlp.gate_up" if mlp.gated else "mlp.up"
    return (
        Product("up", ("normed",), (up,), matrix, hidden),
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
