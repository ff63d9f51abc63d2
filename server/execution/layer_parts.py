"""What a decoder's layers are made of: matrices, norms, attention, MLPs and the inputs of layers,
with their weights.

Every branch here is a fact of the spec, never the name of a family. Letters in shapes as in
server.memory.layer_program: T tokens in the step, D hidden size, Hq and Hkv query and key heads, hd
head_dim, I intermediate size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

import kernels
from kernels import AttentionFeatures, AttentionMetadata, AttentionWorkspace, LinearWeight
from server.execution.kv_pool import CacheLayer, KVPool
from server.memory.kv_groups import CachePart, cache_part
from weights.inventory import XIELU_NUMBERS
from weights.spec import (
    Activation,
    AttentionSpec,
    MlpSpec,
    ModelSpec,
    NormKind,
    NormSpec,
    QkNorm,
    RopeSpec,
)


@dataclass(frozen=True, slots=True)
class StepTensors:
    """What the model reads in a step. ``cache`` is written in place."""

    token_ids: torch.Tensor  # [T] int64
    positions: torch.Tensor  # [T] int64
    cache: KVPool
    metadata: tuple[AttentionMetadata, ...]  # of each group of the KV cache
    workspace: AttentionWorkspace


@dataclass(frozen=True, slots=True)
class PositionTables:
    """What attention needs to know where tokens stand: ``rotary`` has [max_model_len, rope.dim]
    float32 for each rope; ``alibi_slopes`` is [Hq] float32, None without ALiBi."""

    rotary: Mapping[RopeSpec, torch.Tensor]
    alibi_slopes: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class Linear:
    """One matrix of the model: [T, in] -> [T, out].

    Raises ValueError where the weight has not the shape that the program multiplies by.
    """

    name: str
    weight: LinearWeight
    shape: tuple[int, int]  # (out, in)

    def __post_init__(self) -> None:
        if self.weight.shape != self.shape:
            raise ValueError(f"{self.name} is {self.weight.shape}; the model needs {self.shape}")

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return kernels.linear(x, self.weight)


@dataclass(frozen=True, slots=True)
class Norm:
    """A normalisation, fused with the addition of the residual before it where there is one."""

    spec: NormSpec
    weight: torch.Tensor | None  # [D], or [heads, D]; None for a LayerNorm without
    bias: torch.Tensor | None  # likewise; LayerNorm only
    heads: int = 1  # that a row is normalised by, each by itself; LayerNorm only

    def __call__(
        self, x: torch.Tensor, residual: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """[T, D], [T, D] -> norm(x + residual), x + residual."""
        epsilon, offset = self.spec.epsilon, self.spec.weight_offset
        if self.spec.kind is NormKind.LAYER:
            return kernels.add_layer_norm(
                x,
                residual,
                self.weight,
                self.bias,
                epsilon,
                weight_offset=offset,
                heads=self.heads,
            )
        if self.weight is None:
            raise ValueError("an RMS norm has no weights")
        return kernels.add_rms_norm(x, residual, self.weight, epsilon, weight_offset=offset)


@dataclass(frozen=True, slots=True)
class Attention:
    """What attention has beside its matrices: its heads, and its layer's part of the cache."""

    cached: CachePart  # where its keys and values lie
    features: AttentionFeatures
    heads: AttentionSpec
    norm: NormSpec
    rotary_table: torch.Tensor | None  # [max_model_len, rope.dim] float32
    interleaved: bool
    q_norm: Norm | None = None
    k_norm: Norm | None = None

    def attend(
        self,
        step: StepTensors,
        qkv: torch.Tensor,
        query: torch.Tensor | None = None,
        key: torch.Tensor | None = None,
        value: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """[T, channels of the projections] -> [T, Hq hd]; stores this step's keys and values. What
        is given beside ``qkv``, normalised already, takes the place of what is in it."""
        heads, tokens = self.heads, qkv.shape[0]
        by_head = qkv.view(tokens, -1, heads.head_dim)
        q = by_head[:, : heads.num_query_heads]
        k = v = None
        if heads.own_kv:
            k, v = self._keys(by_head), by_head[:, -heads.num_kv_heads :]
        q_norm, k_norm = self.q_norm, self.k_norm
        if query is not None and key is not None:
            q, k = (one.view(tokens, -1, heads.head_dim) for one in (query, key))
            q_norm = k_norm = None
        if value is not None:
            v = value.view(tokens, -1, heads.head_dim)
        cache_layer, kv_scales = self.cache_layer(step.cache)
        metadata = step.metadata[self.cached.group]
        kernels.rotary_store_kv(
            q,
            k,
            v,
            cache_layer,
            metadata.slot_mapping,
            positions=None if self.rotary_table is None else step.positions,
            cos_sin=self.rotary_table,
            interleaved=self.interleaved,
            q_norm=None if q_norm is None else q_norm.weight,
            k_norm=None if k_norm is None else k_norm.weight,
            norm_epsilon=self.norm.epsilon,
            norm_weight_offset=self.norm.weight_offset,
            norm_after_turn=heads.qk_norm_after_rotary,
            kv_scales=kv_scales,
        )
        attended = kernels.paged_attention(
            q,
            cache_layer,
            metadata,
            scale=heads.scale,
            workspace=step.workspace,
            features=self.features,
            kv_scales=kv_scales,
        )
        return attended.view(tokens, heads.query_size)

    def _keys(self, by_head: torch.Tensor) -> torch.Tensor:
        first = self.heads.num_query_heads
        return by_head[:, first : first + self.heads.num_kv_heads]

    def cache_layer(self, cache: KVPool) -> CacheLayer:
        """The layer's part of the pool."""
        return cache.layer(self.cached, self.heads)

    def normalised_values(self, qkv: torch.Tensor) -> torch.Tensor:
        """[T, Hkv hd]: each head's values, or keys where there are no others, without weights."""
        heads = self.heads
        by_head = qkv.view(qkv.shape[0], -1, heads.head_dim)
        values = self._keys(by_head)
        if not heads.values_are_keys:
            values = by_head[:, -heads.num_kv_heads :]
        normed = kernels.add_rms_norm(
            values.reshape(-1, heads.head_dim), None, None, self.norm.epsilon
        )[0]
        return normed.view(-1, heads.kv_size)

    def normalise(self, qkv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries [T, Hq hd] and keys [T, Hkv hd], each over all of its channels together or head
        by head."""
        if self.q_norm is None or self.k_norm is None:
            raise ValueError("there are no weights of norms of queries and keys")
        q, k, _ = qkv.split_with_sizes(
            (self.heads.query_size, self.heads.kv_size, self.heads.kv_size), dim=1
        )
        return self.q_norm(q)[0], self.k_norm(k)[0]


@dataclass(frozen=True, slots=True)
class Mlp:
    """What an MLP has beside its matrices."""

    spec: MlpSpec
    numbers: tuple[torch.Tensor, ...] = ()  # of xIELU, each [1]

    def activate(self, up: torch.Tensor) -> torch.Tensor:
        """[T, 2 I] where the MLP is gated, else [T, I] -> [T, I]."""
        if self.numbers:
            return kernels.xielu(up, *self.numbers)
        kind = self.spec.activation.value
        if self.spec.gated:
            return kernels.gated_activation(up, kind)
        return kernels.activation(up, kind)


@dataclass(frozen=True, slots=True)
class LayerInputs:
    """What all layers are given beside the stream."""

    size: int  # P
    table: torch.Tensor  # [V, layers P]
    projection: Linear
    norm: Norm  # of P channels

    def __call__(self, token_ids: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """[T], [T, D] -> [T, layers P]"""
        projected = self.projection(hidden).mul_(hidden.shape[1] ** -0.5)
        normed = self.norm(projected.view(-1, self.size))[0].view(projected.shape)
        del projected
        scale = torch.tensor(self.size**0.5).to(self.table.dtype).item()
        rows = kernels.embedding(token_ids, self.table).mul_(scale)
        return normed.add_(rows).mul_(2.0**-0.5)


def build_norm(spec: ModelSpec, tensors: Mapping[str, torch.Tensor], name: str) -> Norm:
    weight = tensors[f"{name}.weight"] if spec.norm.weight else None
    return Norm(spec.norm, weight, tensors.get(f"{name}.bias"))


def _head_norm(
    spec: ModelSpec, tensors: Mapping[str, torch.Tensor], name: str, heads: int
) -> Norm | None:
    """The norm of queries or of keys; None where there is none."""
    kind = spec.attention.qk_norm
    if kind is QkNorm.NONE:
        return None
    bias = tensors.get(f"{name}.bias")
    return Norm(spec.norm, tensors[f"{name}.weight"], bias, 1 if kind is QkNorm.WHOLE else heads)


def build_attention(
    spec: ModelSpec, index: int, tensors: Mapping[str, torch.Tensor], positions: PositionTables
) -> Attention:
    heads, rope = spec.layer_attention(index), spec.layer_rope(index)
    name = f"layers.{index}.attention"
    return Attention(
        cache_part(spec, index),
        AttentionFeatures(
            window=spec.window(index),
            soft_cap=heads.soft_cap or 0.0,
            alibi_slopes=positions.alibi_slopes,
        ),
        heads,
        spec.norm,
        None if rope is None else positions.rotary[rope],
        rope is not None and rope.interleaved,
        _head_norm(spec, tensors, f"{name}.query_norm", heads.num_query_heads),
        _head_norm(spec, tensors, f"{name}.key_norm", heads.num_kv_heads) if heads.own_kv else None,
    )


def activation_numbers(
    spec: ModelSpec, name: str, tensors: Mapping[str, torch.Tensor]
) -> tuple[torch.Tensor, ...]:
    if spec.mlp.activation is not Activation.XIELU:
        return ()
    return tuple(tensors[f"{name}.{number}"] for number in XIELU_NUMBERS)


def build_layer_inputs(
    spec: ModelSpec, linears: Mapping[str, LinearWeight], tensors: Mapping[str, torch.Tensor]
) -> LayerInputs | None:
    """None for a model whose layers have none."""
    if spec.layer_input is None:
        return None
    name, width = "layer_input_projection", spec.num_layers * spec.layer_input.size
    return LayerInputs(
        spec.layer_input.size,
        tensors["layer_embedding"],
        Linear(name, linears[name], (width, spec.hidden_size)),
        build_norm(spec, tensors, "layer_input_norm"),
    )
