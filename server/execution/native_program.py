"""The calls of a decoder's native program: what each operation of the layer program comes to.

Values lie where server.memory.program_values puts them; letters in shapes as in
server.memory.layer_program.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import assert_never

import torch
from torch import Tensor

from kernels import LinearWeight
from kernels.cpu.native import structs
from kernels.cpu.native.attention import (
    attention_call,
    rotary_store_call,
)
from kernels.cpu.native.elementwise import activation_call, embedding_call, norm_call
from kernels.cpu.native.linear import linear_call
from kernels.cpu.native.program import address
from kernels.types import HeadNorms
from server.execution.kv_pool import KVPool
from server.execution.layer_parts import (
    Attention,
    Norm,
    PositionTables,
    activation_numbers,
    build_attention,
    build_layer_inputs,
    build_norm,
)
from server.execution.model import Decoder
from server.memory import layer_program as program
from server.memory.program_values import ValuePlaces
from weights.spec import ModelSpec, NormKind

Calls = Iterator[ctypes.Structure]
Values = Mapping[str, Tensor]  # of one program, each [most tokens, channels] float32


@dataclass(frozen=True, slots=True)
class Room:
    """What a program's calls work in: the arena of values, the scratch of products, the KV
    cache."""

    values: Tensor  # [channels, most tokens] float32: each value's channels are one piece of it
    scratch: Tensor
    cache: KVPool
    vectors: Tensor  # [numbers of norms and biases] float32, where these are held otherwise
    most: int  # tokens of a step

    def of(self, places: Mapping[str, tuple[int, int]]) -> dict[str, Tensor]:
        return {
            name: self.values[start : start + channels].view(self.most, channels)
            for name, (start, channels) in places.items()
        }


class ProgramMaker:
    """Makes the calls of a model's programs, which point into the room and the weights."""

    def __init__(
        self,
        spec: ModelSpec,
        linears: Mapping[str, LinearWeight],
        tensors: Mapping[str, Tensor],
        tables: PositionTables,
        room: Room,
        places: ValuePlaces,
        decoder: Decoder,
    ) -> None:
        self.spec, self.linears, self.tensors, self.tables = spec, linears, tensors, tables
        self.room, self.places, self.decoder = room, places, decoder
        self._vectors = 0  # of the room's that are taken
        self._wide_of: dict[int, Tensor] = {}
        self._has_residual = False

    def before_layers(self) -> Calls:
        values = self.room.of(self.places.embedding)
        steps = program.embedding_program(self.spec)
        for step in steps:
            reads = [values[name] for name in step.reads]
            writes = [values[value.name] for value in step.writes]
            match step:
                case program.Embed():
                    yield from self._embed(step, writes[0])
                case program.LayerInputs():
                    yield from self._layer_inputs(*writes)
                case program.Product():
                    yield self._product(step.matrix, reads[0], writes[0])
                case program.Add():
                    yield _sum(reads[0], writes[0], other=reads[1])
                case program.Scale():
                    factor = self.decoder.embedding_scale
                    yield _sum(reads[0], writes[0], factor=factor)
                case program.Norm():
                    norm = build_norm(self.spec, self.tensors, step.weights)
                    yield self._norm(norm, reads[0], writes[0])
                case _:
                    assert_never(step)

    def final_norm(self) -> structs.Norm:
        """Of rows anywhere."""
        room = self.room.of(self.places.layers[0])["hidden"]
        return self._norm(build_norm(self.spec, self.tensors, "final_norm"), room, room)

    def unembedding(self) -> structs.Linear:
        """Of rows anywhere, to anywhere."""
        weight = self.linears["unembedding"]
        self._check_shape("unembedding", (self.spec.vocab_size, self.spec.table_width))
        room = self.room.values.view(-1)  # an address that is always replaced
        bias = self._wide(weight.bias)
        return linear_call(weight, room, room, self.room.scratch, bias=bias, most=self.room.most)

    def layer(self, index: int) -> Calls:
        spec, prefix = self.spec, f"layers.{index}"
        heads = spec.layer_attention(index)
        kind = [spec.layer_attention(kind) for kind in spec.kinds_of_layers].index(heads)
        values = self.room.of(self.places.layers[kind])
        attention = build_attention(spec, index, self.tensors, self.tables)
        steps = program.layer_program(spec.as_layer(index))
        for step, dying in zip(steps, program.last_reads(steps), strict=True):
            yield from self._operation(step, dying, values, attention, index, prefix)
            self._has_residual |= any(value.name == "residual" for value in step.writes)

    def _operation(
        self,
        step: program.LayerOperation,
        dying: frozenset[str],
        values: Values,
        attention: Attention,
        index: int,
        prefix: str,
    ) -> Calls:
        reads = [values[name] for name in step.reads]
        writes = [values[value.name] for value in step.writes]
        match step:
            case program.AddNorm():
                norm = build_norm(self.spec, self.tensors, f"{prefix}.{step.weights}")
                yield from self._add_norm(step, norm, reads, writes, dying)
            case program.Norm():
                norm = build_norm(self.spec, self.tensors, f"{prefix}.{step.weights}")
                yield self._norm(norm, reads[0], writes[0])
            case program.QkNorm():
                yield from self._normalised_heads(attention, reads[0], writes)
            case program.Add():
                there = "residual" not in step.reads or self._has_residual
                yield _sum(reads[0], writes[0], other=reads[1] if there else None)
            case program.Scale():
                yield _sum(reads[0], writes[0], factor=step.factor)
            case program.StreamScale():
                factor = float(self.tensors[f"{prefix}.{step.weight}"])
                yield _sum(reads[0], writes[0], factor=factor)
            case program.Clip():
                yield _sum(reads[0], writes[0], limit=step.limit)
            case program.WeighInput():
                size = writes[0].shape[1]
                inputs = reads[1][:, index * size : (index + 1) * size]
                activation = self.spec.mlp.activation.value
                yield activation_call(reads[0], writes[0], activation, other=inputs)
            case program.ValueNorm():
                yield self._normalised_values(attention, reads[0], writes[0])
            case program.ScaleQueries():
                width, scale = attention.heads.query_size, step.scale
                yield structs.QueryScale(
                    address(reads[0]), reads[0].stride(0), width, scale.length, scale.beta
                )
            case program.Product():
                yield self._product(f"{prefix}.{step.matrix}", reads[0], writes[0])
            case program.Attend():
                given = dict(zip(step.reads, reads, strict=True))
                yield from self._attend(attention, writes[0], **given)
            case program.Activate():
                yield self._activate(index, prefix, reads[0], writes[0])
            case _:
                assert_never(step)

    def _embed(self, step: program.Embed, out: Tensor) -> Calls:
        of_ids = step.name == "embedding"
        if of_ids:
            tied = self.linears["unembedding"] if self.spec.tied_unembedding else None
            yield embedding_call(self.tensors["embedding"] if tied is None else tied, out)
        table = self.decoder.position_table
        if table is not None and (step.learned_positions or not of_ids):
            added = out if of_ids else None
            yield embedding_call(table, out, of_positions=True, added=added)

    def _layer_inputs(self, hidden: Tensor, inputs: Tensor) -> Calls:
        parts = build_layer_inputs(self.spec, self.linears, self.tensors)
        if parts is None:
            raise ValueError("the model's layers have no inputs of their own")
        yield self._product(parts.projection.name, hidden, inputs)
        yield _sum(inputs, inputs, factor=hidden.shape[1] ** -0.5)
        yield self._norm(replace(parts.norm, heads=self.spec.num_layers), inputs, inputs)
        scale = torch.tensor(parts.size**0.5).to(parts.table.dtype).item()
        yield embedding_call(parts.table, inputs, added=inputs, scale=scale)
        yield _sum(inputs, inputs, factor=2.0**-0.5)

    def _product(self, name: str, x: Tensor, out: Tensor) -> structs.Linear:
        weight = self.linears[name]
        self._check_shape(name, (out.shape[1], x.shape[1]))
        if x.data_ptr() == out.data_ptr():
            raise ValueError(f"{name} cannot be multiplied in place")
        bias = self._wide(weight.bias)
        return linear_call(weight, x, out, self.room.scratch, bias=bias, most=self.room.most)

    def _check_shape(self, name: str, needed: tuple[int, int]) -> None:
        shape = self.linears[name].shape
        if shape != needed:
            raise ValueError(f"{name} is {shape}; the model needs {needed}")

    def _norm(
        self,
        norm: Norm,
        x: Tensor,
        out: Tensor,
        residual: Tensor | None = None,
        total: Tensor | None = None,
    ) -> structs.Norm:
        return norm_call(
            x,
            out,
            residual=residual,
            total=total,
            weight=self._wide(norm.weight, norm.spec.weight_offset),
            bias=self._wide(norm.bias),
            epsilon=norm.spec.epsilon,
            heads=norm.heads,
            centred=norm.spec.kind is NormKind.LAYER,
        )

    def _wide(self, vector: Tensor | None, offset: float = 0.0) -> Tensor | None:
        """In float32 and with what is added to it; itself where it is that already."""
        if vector is None or (vector.dtype is torch.float32 and not offset):
            return vector
        if vector.data_ptr() not in self._wide_of:
            first, self._vectors = self._vectors, self._vectors + vector.numel()
            room = self.room.vectors[first : self._vectors].view(vector.shape)
            self._wide_of[vector.data_ptr()] = room.copy_(vector).add_(offset)
        return self._wide_of[vector.data_ptr()]

    def _add_norm(
        self,
        step: program.AddNorm,
        norm: Norm,
        reads: Sequence[Tensor],
        writes: Sequence[Tensor],
        dying: frozenset[str],
    ) -> Calls:
        (x, other), (out, *totals) = reads, writes
        if "residual" in step.reads and not self._has_residual:  # in the first layer
            if totals:
                yield _sum(x, totals[0])
            yield self._norm(norm, x, out)
            return
        if not totals:  # the sum is read by nobody: it takes the place of what nobody reads either
            totals = [one for name, one in zip(step.reads, reads, strict=True) if name in dying]
        yield self._norm(norm, x, out, other, totals[0])

    def _normalised_heads(
        self, attention: Attention, qkv: Tensor, writes: Sequence[Tensor]
    ) -> Calls:
        if attention.q_norm is None or attention.k_norm is None:
            raise ValueError("there are no weights of norms of queries and keys")
        heads = attention.heads
        parts = qkv.split_with_sizes((heads.query_size, heads.kv_size, heads.kv_size), dim=1)
        yield self._norm(attention.q_norm, parts[0], writes[0])
        yield self._norm(attention.k_norm, parts[1], writes[1])

    def _normalised_values(self, attention: Attention, qkv: Tensor, out: Tensor) -> structs.Norm:
        heads = attention.heads
        start = heads.query_size if heads.values_are_keys else qkv.shape[1] - heads.kv_size
        return norm_call(
            qkv[:, start : start + heads.kv_size],
            out,
            epsilon=attention.norm.epsilon,
            heads=heads.num_kv_heads,
            centred=False,
        )

    def _attend(
        self,
        attention: Attention,
        out: Tensor,
        qkv: Tensor,
        query: Tensor | None = None,
        key: Tensor | None = None,
        value: Tensor | None = None,
    ) -> Calls:
        heads, most = attention.heads, self.room.most
        by_head = qkv.view(most, -1, heads.head_dim)
        q, k, v = by_head[:, : heads.num_query_heads], None, None
        if heads.own_kv:
            k = by_head[:, heads.num_query_heads :][:, : heads.num_kv_heads]
            v = by_head[:, -heads.num_kv_heads :]
        norms = self._head_norms(attention)
        if query is not None and key is not None:
            q, k = (one.view(most, -1, heads.head_dim) for one in (query, key))
            norms = None
        if value is not None:
            v = value.view(most, -1, heads.head_dim)
        cache_layer, kv_scales = attention.cache_layer(self.room.cache)
        group = attention.cached.group
        yield rotary_store_call(
            q,
            k,
            v,
            cache_layer,
            cos_sin=attention.rotary_table,
            interleaved=attention.interleaved,
            norms=norms,
            kv_scales=kv_scales,
            group=group,
        )
        yield attention_call(
            q,
            cache_layer,
            out.view(most, -1, heads.head_dim),
            None,
            scale=heads.scale,
            features=attention.features,
            kv_scales=kv_scales,
            group=group,
        )

    def _head_norms(self, attention: Attention) -> HeadNorms | None:
        """RMS norms of each head, which Attend applies."""
        q_norm, k_norm, offset = attention.q_norm, attention.k_norm, attention.norm.weight_offset
        query = None if q_norm is None else self._wide(q_norm.weight, offset)
        key = None if k_norm is None else self._wide(k_norm.weight, offset)
        if query is None:
            return None
        return HeadNorms(
            query,
            query if key is None else key,
            attention.norm.epsilon,
            after_turn=attention.heads.qk_norm_after_rotary,
        )

    def _activate(self, index: int, prefix: str, up: Tensor, out: Tensor) -> structs.Activation:
        mlp = self.spec.layer_mlp(index)
        numbers = activation_numbers(self.spec, f"{prefix}.mlp.activation", self.tensors)
        width, kind = out.shape[1], mlp.activation.value
        other = up[:, width:] if mlp.gated else None
        return activation_call(
            up, out, kind, other=other, numbers=tuple(float(one) for one in numbers)
        )


def _sum(
    x: Tensor, out: Tensor, *, other: Tensor | None = None, factor: float = 1.0, limit: float = 0.0
) -> structs.Sum:
    return structs.Sum(address(x), address(other), address(out), x.shape[1], factor, limit)
