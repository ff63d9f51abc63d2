"""One decoder, assembled from a ModelSpec: embedding, layers (server.execution.layers), logits.

Every branch here is a fact of the spec, never the name of a family. Letters in shapes: T tokens in
the step, D hidden size, R rows whose logits are asked for, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

import kernels
from kernels import LinearWeight
from server.execution.decode_program import DecodeProgram, RowBuffers
from server.execution.layer_parts import (
    Linear,
    PositionTables,
    StepTensors,
    build_layer_inputs,
    build_norm,
)
from server.execution.layers import build_layer
from server.memory.layout import Layout, rotary_ropes
from weights.loading.tensor_reader import torch_dtype
from weights.spec import ModelSpec, NormPlacement, PositionKind, RopeSpec


class Decoder:
    """The forward pass of one checkpoint. Holds weights and tables of positions, no other state.

    ``format`` is that of the weights, which a packed table does not tell.
    """

    def __init__(
        self,
        spec: ModelSpec,
        linears: Mapping[str, LinearWeight],
        tensors: Mapping[str, torch.Tensor],
        tables: PositionTables,
        format: str,
    ) -> None:
        self.spec = spec
        self.embedding = tensors["embedding"]  # [V, D]
        self.embedding_scale = spec.embedding_scale
        if spec.rounded_embedding_scale:
            rounded = torch.tensor(spec.embedding_scale).to(torch_dtype(format))
            self.embedding_scale = rounded.item()
        positions = tensors.get("position_embedding")  # [offset + P, D]
        self.position_table = None if positions is None else positions[spec.position_offset :]
        self.embedding_norm = (
            build_norm(spec, tensors, "embedding_norm") if spec.embedding_norm else None
        )
        self.layers = [
            build_layer(spec, index, linears, tensors, tables) for index in range(spec.num_layers)
        ]
        normed = spec.norm.placement is NormPlacement.POST  # by the last layer
        self.final_norm = None if normed else build_norm(spec, tensors, "final_norm")
        vocabulary = (spec.vocab_size, spec.table_width)
        self.unembedding = Linear("unembedding", linears["unembedding"], vocabulary)
        self.layer_inputs = build_layer_inputs(spec, linears, tensors)
        self.project_in = self.project_out = None
        if spec.embedding_size:
            inward = (spec.hidden_size, spec.embedding_size)
            name, back = "embedding_projection", "unembedding_projection"
            self.project_in = Linear(name, linears[name], inward)
            self.project_out = Linear(back, linears[back], inward[::-1])

    def forward(
        self, step: StepTensors, num_layers: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Runs the layers: ([T, D] last MLP output, [T, D] residual before it is added; none where
        each sum is normalised, and the last one is the output).

        ``num_layers`` runs only the first of them: those of one kind have the same intermediates,
        so one of each is enough to measure by.
        """
        values = {"hidden": self._embed(step)}
        if self.layer_inputs is not None:
            values["layer_inputs"] = self.layer_inputs(step.token_ids, values["hidden"])
        for layer in self.layers[:num_layers]:
            layer.run(values, step)
        return values["hidden"], values.get("residual")

    def pick(
        self, x: torch.Tensor, residual: torch.Tensor | None, rows: torch.Tensor | None
    ) -> torch.Tensor:
        """The final norm, where there is one, of the chosen rows alone, or of all.

        [T, D], [T, D], [R] -> [R, D].
        """
        if rows is not None:
            x = x.index_select(0, rows)
            residual = None if residual is None else residual.index_select(0, rows)
        return x if self.final_norm is None else self.final_norm(x, residual)[0]

    def decode_program(self, rows: RowBuffers) -> DecodeProgram | None:
        """Whole decode steps as one piece of work; None where there is no such program."""
        return None

    def logits(self, hidden: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """[R, D] -> [R, V] float32, in ``out`` where it is given."""
        if self.project_out is not None:
            hidden = self.project_out(hidden)
        product = self.unembedding(hidden)
        return self.scaled(product.float() if out is None else out.copy_(product))

    def scaled(self, logits: torch.Tensor) -> torch.Tensor:
        """[R, V] as the model reads them, in place."""
        if self.spec.logit_scale != 1.0:
            logits.mul_(self.spec.logit_scale)
        cap = self.spec.logit_soft_cap
        return logits if cap is None else logits.div_(cap).tanh_().mul_(cap)

    def _embed(self, step: StepTensors) -> torch.Tensor:
        table = self.position_table
        positions = None if table is None else step.positions
        if self.project_in is None:
            hidden = kernels.embedding(
                step.token_ids, self.embedding, positions=positions, position_table=table
            )
        else:
            hidden = self.project_in(kernels.embedding(step.token_ids, self.embedding))
            if positions is not None and table is not None:
                hidden = hidden + kernels.embedding(positions, table)
        if self.embedding_scale != 1.0:
            hidden = hidden * self.embedding_scale
        return hidden if self.embedding_norm is None else self.embedding_norm(hidden)[0]


def build_decoder(
    spec: ModelSpec,
    linears: Mapping[str, LinearWeight],
    tensors: Mapping[str, torch.Tensor],
    tables: PositionTables,
    layout: Layout,
    buffers: Mapping[str, torch.Tensor],
) -> Decoder:
    """The decoder of a checkpoint, of which every operation is called by itself."""
    return Decoder(spec, linears, tensors, tables, layout.config.model.format)


def fill_position_tables(
    spec: ModelSpec, max_model_len: int, buffers: Mapping[str, torch.Tensor]
) -> PositionTables:
    """Cosines and sines of every position of the server's life, or ALiBi's slopes, in the layout's
    own buffers; neither for a model whose positions are learned.

    A scaling that depends on length takes it from ``max_model_len``.
    """
    rotary = {
        rope: buffers[name].copy_(_rotary_table(rope, max_model_len))
        for name, rope in rotary_ropes(spec).items()
    }
    if spec.position is not PositionKind.ALIBI:
        return PositionTables(rotary, None)
    slopes = kernels.alibi_slopes(spec.attention.num_query_heads, spec.alibi.max_bias)
    return PositionTables(rotary, buffers["alibi_slopes"].copy_(slopes * spec.alibi.factor))


def _rotary_table(rope: RopeSpec, max_model_len: int) -> torch.Tensor:
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
        short_factors=rope.short_factors,
        long_factors=rope.long_factors,
        proportion=rope.proportion,
    )
