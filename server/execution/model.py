"""One decoder, assembled from a ModelSpec out of kernels' public functions.

Every branch here is a fact of the spec (norm kind, gated MLP, kind of positions), never the name of
a family. Letters in shapes: T tokens in the step, D hidden size, Hq and Hkv query and key heads,
hd head_dim, I intermediate size, R rows whose logits are asked for, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

import kernels
from kernels import AttentionMetadata, AttentionWorkspace, LinearWeight
from weights.spec import ModelSpec, NormKind, NormSpec, PositionKind


@dataclass(frozen=True, slots=True)
class Norm:
    """A pre-normalisation fused with the addition of the residual before it."""

    spec: NormSpec
    weight: torch.Tensor  # [D]
    bias: torch.Tensor | None  # [D]; LayerNorm only

    def __call__(
        self, x: torch.Tensor, residual: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """[T, D], [T, D] -> norm(x + residual), x + residual."""
        if self.spec.kind is NormKind.RMS:
            return kernels.add_rms_norm(x, residual, self.weight, self.spec.epsilon)
        if self.bias is None:
            raise ValueError("a LayerNorm needs a bias")
        return kernels.add_layer_norm(x, residual, self.weight, self.bias, self.spec.epsilon)


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    attention_norm: Norm
    qkv: LinearWeight  # [(Hq + 2 Hkv) hd, D]: query, key, value rows
    output: LinearWeight  # [D, Hq hd]
    mlp_norm: Norm
    up: LinearWeight  # gated: [2 I, D], gate then up rows; else [I, D]
    down: LinearWeight  # [D, I]


@dataclass(frozen=True, slots=True)
class StepTensors:
    """What the model reads in a step. ``cache`` has kernels' layout and is written in place."""

    token_ids: torch.Tensor  # [T] int64
    positions: torch.Tensor  # [T] int64
    slot_mapping: torch.Tensor  # [T] int64
    cache: torch.Tensor  # [layers, blocks, 2, Hkv, block_size, hd]
    metadata: AttentionMetadata
    workspace: AttentionWorkspace


class Decoder:
    """The forward pass of one checkpoint. Holds weights and the rotary table, no other state."""

    def __init__(
        self,
        spec: ModelSpec,
        linears: Mapping[str, LinearWeight],
        tensors: Mapping[str, torch.Tensor],
        rotary_table: torch.Tensor | None,
    ) -> None:
        self.spec = spec
        self.embedding = tensors["embedding"]  # [V, D]
        self.position_table = tensors.get("position_embedding")  # [P, D]
        self.rotary_table = rotary_table  # [max_model_len, rope.dim] float32
        self.layers = [_layer(spec, linears, tensors, i) for i in range(spec.num_layers)]
        self.final_norm = _norm(spec.norm, tensors, "final_norm")
        self.unembedding = linears["unembedding"]  # [V, D]

    def forward(
        self, step: StepTensors, num_layers: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Runs the layers: ([T, D] last MLP output, [T, D] residual before it is added).

        ``num_layers`` runs only the first of them: all have the same intermediates, so one is
        enough to measure by. Tensors are dropped as soon as the next operation no longer needs
        them: the layout counts the peak of this very order.
        """
        x = self._embed(step)
        residual: torch.Tensor | None = None
        for index, layer in enumerate(self.layers[:num_layers]):
            normed, residual = layer.attention_norm(x, residual)
            del x
            qkv = kernels.linear(normed, layer.qkv)
            del normed
            attended = self._attend(qkv, step, index)  # [T, Hq hd]
            del qkv
            x = kernels.linear(attended, layer.output)
            del attended
            normed, residual = layer.mlp_norm(x, residual)
            del x
            up = kernels.linear(normed, layer.up)
            del normed
            inner = self._activate(up)  # [T, I]
            del up
            x = kernels.linear(inner, layer.down)
            del inner
        if residual is None:
            raise ValueError("a decoder needs at least one layer")
        return x, residual

    def pick(
        self, x: torch.Tensor, residual: torch.Tensor, rows: torch.Tensor | None
    ) -> torch.Tensor:
        """The final norm of the chosen rows alone, or of all: [T, D], [T, D], [R] -> [R, D]."""
        if rows is not None:
            x, residual = x.index_select(0, rows), residual.index_select(0, rows)
        normed, _ = self.final_norm(x, residual)
        return normed

    def logits(self, hidden: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """[R, D] -> [R, V] float32, in ``out`` where it is given."""
        product = kernels.linear(hidden, self.unembedding)
        return product.float() if out is None else out.copy_(product)

    def _embed(self, step: StepTensors) -> torch.Tensor:
        if self.position_table is None:
            return kernels.embedding(step.token_ids, self.embedding)
        return kernels.embedding(
            step.token_ids,
            self.embedding,
            positions=step.positions,
            position_table=self.position_table,
        )

    def _attend(self, qkv: torch.Tensor, step: StepTensors, index: int) -> torch.Tensor:
        """[T, (Hq + 2 Hkv) hd] -> [T, Hq hd]; stores this step's keys and values."""
        heads = self.spec.attention
        by_head = qkv.view(qkv.shape[0], -1, heads.head_dim)
        q = by_head[:, : heads.num_query_heads]
        k = by_head[:, heads.num_query_heads : -heads.num_kv_heads]
        v = by_head[:, -heads.num_kv_heads :]
        cache_layer = step.cache[index]
        kernels.rotary_store_kv(
            q,
            k,
            v,
            cache_layer,
            step.slot_mapping,
            positions=None if self.rotary_table is None else step.positions,
            cos_sin=self.rotary_table,
            interleaved=self.spec.rope.interleaved,
        )
        attended = kernels.paged_attention(
            q, cache_layer, step.metadata, scale=heads.scale, workspace=step.workspace
        )
        return attended.view(qkv.shape[0], heads.query_size)

    def _activate(self, up: torch.Tensor) -> torch.Tensor:
        kind = self.spec.mlp.activation.value
        if self.spec.mlp.gated:
            return kernels.gated_activation(up, kind)
        return kernels.activation(up, kind)


def rotary_table(spec: ModelSpec, max_model_len: int) -> torch.Tensor | None:
    """Cosines and sines of every position of the server's life, or None without rotary positions.

    A scaling that depends on length takes it from ``max_model_len``.
    """
    if spec.position is not PositionKind.ROTARY:
        return None
    rope = spec.rope
    return kernels.rotary_table(
        dim=rope.dim,
        max_positions=max_model_len,
        theta=rope.theta,
        scaling=rope.scaling.value,
        factor=rope.factor,
        original_max_positions=rope.original_max_positions,
        low_freq_factor=rope.low_freq_factor,
        high_freq_factor=rope.high_freq_factor,
        beta_fast=rope.beta_fast,
        beta_slow=rope.beta_slow,
        attention_factor=rope.attention_factor,
        truncate=rope.truncate,
    )


def _layer(
    spec: ModelSpec,
    linears: Mapping[str, LinearWeight],
    tensors: Mapping[str, torch.Tensor],
    index: int,
) -> DecoderLayer:
    name = f"layers.{index}"
    return DecoderLayer(
        attention_norm=_norm(spec.norm, tensors, f"{name}.attention_norm"),
        qkv=linears[f"{name}.attention.qkv"],
        output=linears[f"{name}.attention.output"],
        mlp_norm=_norm(spec.norm, tensors, f"{name}.mlp_norm"),
        up=linears[f"{name}.mlp.gate_up" if spec.mlp.gated else f"{name}.mlp.up"],
        down=linears[f"{name}.mlp.down"],
    )


def _norm(spec: NormSpec, tensors: Mapping[str, torch.Tensor], name: str) -> Norm:
    return Norm(spec, tensors[f"{name}.weight"], tensors.get(f"{name}.bias"))
