"""A decoder layer: its program (server.memory.layer_program) bound to its parts.

Letters in shapes as in the program.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from operator import itemgetter, methodcaller
from typing import assert_never

import torch

import kernels
from kernels import LinearWeight
from server.execution.layer_parts import (
    Attention,
    Linear,
    Mlp,
    Norm,
    PositionTables,
    StepTensors,
    activation_numbers,
    build_attention,
    build_norm,
)
from server.memory import layer_program as program
from weights.spec import ModelSpec, QueryScale

Values = dict[str, torch.Tensor]  # those that are alive, by the program's names
Call = Callable[[Values, StepTensors], None]
Names = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    """The calls that a layer's program comes to. ``values`` has, before and after, what the program
    is given and hands on: the hidden state, and the residual but for the first layer."""

    calls: tuple[Call, ...]

    def run(self, values: Values, step: StepTensors) -> None:
        for call in self.calls:
            call(values, step)


def build_layer(
    spec: ModelSpec,
    index: int,
    linears: Mapping[str, LinearWeight],
    tensors: Mapping[str, torch.Tensor],
    positions: PositionTables,
) -> DecoderLayer:
    """Layer ``index`` of a model, with its weights."""
    prefix = f"layers.{index}"
    attention = build_attention(spec, index, tensors, positions)
    steps = program.layer_program(spec.as_layer(index))
    mlp = Mlp(spec.layer_mlp(index), activation_numbers(spec, f"{prefix}.mlp.activation", tensors))

    def bound(operation: program.LayerOperation, dying: frozenset[str]) -> Call:
        reads, writes = operation.reads, tuple(value.name for value in operation.writes)
        match operation:
            case program.AddNorm():
                norm = build_norm(spec, tensors, f"{prefix}.{operation.weights}")
                return _adding_and_normalising(norm, reads, writes, dying)
            case program.Norm():
                plain = build_norm(spec, tensors, f"{prefix}.{operation.weights}")
                return _making(lambda x: plain(x)[0], reads, writes, dying)
            case program.QkNorm():
                return _normalising_heads(attention, reads, writes, dying)
            case program.Add():
                return _adding(reads, writes, dying)
            case program.Scale():
                return _making(partial(torch.mul, other=operation.factor), reads, writes, dying)
            case program.StreamScale():
                scale = tensors[f"{prefix}.{operation.weight}"]
                return _making(lambda x: x.mul_(scale), reads, writes, dying)
            case program.WeighInput():
                return _weighing(spec, index, reads, writes, dying)
            case program.ValueNorm():
                return _making(attention.normalised_values, reads, writes, dying)
            case program.Clip():
                limit = operation.limit
                clip = partial(torch.clamp_, min=-limit, max=limit)
                return _making(clip, reads, writes, dying)
            case program.ScaleQueries():
                return _scaling_queries(attention, operation.scale, reads, writes, dying)
            case program.Product():
                name, (out,) = f"{prefix}.{operation.matrix}", operation.writes
                linear = Linear(name, linears[name], (out.channels, operation.columns))
                return _making(linear, reads, writes, dying)
            case program.Attend():
                return _attending(attention, reads, writes, dying)
            case program.Activate():
                return _making(mlp.activate, reads, writes, dying)
        assert_never(operation)

    return DecoderLayer(tuple(map(bound, steps, program.last_reads(steps))))


def _taking(value: str, dying: frozenset[str]) -> Callable[[Values], torch.Tensor]:
    """Reads ``value``; where it dies, out of the values, so that nothing holds it but the call."""
    return methodcaller("pop", value) if value in dying else itemgetter(value)


def _taking_if_there(value: str, dying: frozenset[str]) -> Callable[[Values], torch.Tensor | None]:
    """As _taking, of what may not be there: before the first layer there is no residual."""
    return methodcaller("pop" if value in dying else "get", value, None)


def _making(
    function: Callable[[torch.Tensor], torch.Tensor],
    reads: Names,
    writes: Names,
    dying: frozenset[str],
) -> Call:
    (x,), (out,) = reads, writes
    take = _taking(x, dying)

    def call(values: Values, step: StepTensors) -> None:
        values[out] = function(take(values))

    return call


def _attending(attention: Attention, reads: Names, writes: Names, dying: frozenset[str]) -> Call:
    (attended,) = writes
    takes = {name: _taking(name, dying) for name in reads}

    def call(values: Values, step: StepTensors) -> None:
        given = {name: take(values) for name, take in takes.items()}
        values[attended] = attention.attend(step, **given)

    return call


def _normalising_heads(
    attention: Attention, reads: Names, writes: Names, dying: frozenset[str]
) -> Call:
    (qkv,), (query, key) = reads, writes
    take = _taking(qkv, dying)

    def call(values: Values, step: StepTensors) -> None:
        values[query], values[key] = attention.normalise(take(values))

    return call


def _scaling_queries(
    attention: Attention, scale: QueryScale, reads: Names, writes: Names, dying: frozenset[str]
) -> Call:
    (given,), (out,) = reads, writes
    take, size = _taking(given, dying), attention.heads.query_size

    def call(values: Values, step: StepTensors) -> None:
        qkv = values[out] = take(values)
        lengths = step.positions.div(scale.length, rounding_mode="floor")
        factors = lengths.float().log1p_().mul_(scale.beta).add_(1.0).to(qkv.dtype)
        qkv[:, :size].mul_(factors.unsqueeze(1))

    return call


def _weighing(
    spec: ModelSpec, index: int, reads: Names, writes: Names, dying: frozenset[str]
) -> Call:
    """The layer's input times the activated gate."""
    (gate, inputs), (out,) = reads, writes
    size = spec.layer_input.size if spec.layer_input else 0
    kind, take = spec.mlp.activation.value, _taking(gate, dying)
    part = slice(index * size, (index + 1) * size)

    def call(values: Values, step: StepTensors) -> None:
        values[out] = kernels.activation(take(values), kind).mul_(values[inputs][:, part])

    return call


def _adding(reads: Names, writes: Names, dying: frozenset[str]) -> Call:
    (x, other), (total,) = reads, writes
    take, take_other = _taking(x, dying), _taking_if_there(other, dying)

    def call(values: Values, step: StepTensors) -> None:
        first, second = take(values), take_other(values)
        values[total] = first if second is None else first + second

    return call


def _adding_and_normalising(norm: Norm, reads: Names, writes: Names, dying: frozenset[str]) -> Call:
    (x, residual), (normed, *total) = reads, writes
    take, take_residual = _taking(x, dying), _taking_if_there(residual, dying)

    def call_for_norm(values: Values, step: StepTensors) -> None:
        values[normed] = norm(take(values), take_residual(values))[0]

    def call(values: Values, step: StepTensors) -> None:
        values[normed], values[total[0]] = norm(take(values), take_residual(values))

    return call if total else call_for_norm
