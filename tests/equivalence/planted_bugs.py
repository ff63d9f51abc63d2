"""Bugs of the kinds that engines have shipped, planted one at a time, and who must notice each.

A bug is a patch of our own code at run time. ``caught_by`` names the parity or equivalence check
that fails with it; test_planted_bugs.py shows that it does.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from pytest import MonkeyPatch

import kernels
from server.engine.step import ScheduledRow
from server.engine.step_plan import AdmittedRow, PlannedRow
from server.execution.input_batch import InputBatch, StepInputs
from server.execution.kv_cache import KVCache
from server.execution.model import Decoder, Norm
from server.execution.model_runner import ModelRunner, Picks
from server.execution.row_sampling import RowSampling

Apply = Callable[[MonkeyPatch], None]


@dataclass(frozen=True)
class PlantedBug:
    name: str
    caught_by: str  # a key of checks.CHECKS or of test_planted_bugs.PARITY
    family: str  # a key of the checkpoints there
    apply: Apply


def _wrap(owner: Any, name: str, make: Callable[[Any], Any]) -> Apply:
    """Replaces ``owner.name`` by what ``make`` does with the original."""

    def apply(patch: MonkeyPatch) -> None:
        patch.setattr(owner, name, make(getattr(owner, name)))

    return apply


def _change_inputs(change: Callable[[StepInputs], StepInputs]) -> Apply:
    return _wrap(
        InputBatch, "step_inputs", lambda real: lambda self, planned: change(real(self, planned))
    )


# -- positions, slots, tables --------------------------------------------------------------------


def _position_plus_one(inputs: StepInputs) -> StepInputs:
    return replace(inputs, positions=inputs.positions + 1)


def _position_plus_one_after_the_first_chunk(inputs: StepInputs) -> StepInputs:
    chunks = np.diff(inputs.query_start_loc)
    is_later = np.repeat(inputs.seq_lens > chunks, chunks)
    return replace(inputs, positions=inputs.positions + is_later)


def _stale_slot(inputs: StepInputs) -> StepInputs:
    """A chunk's first token goes where the chunk before it ended."""
    slots = inputs.slot_mapping.copy()
    starts = inputs.query_start_loc[:-1]
    slots[starts] -= inputs.positions[starts] > 0
    return replace(inputs, slot_mapping=slots)


def _neighbours_block_table(inputs: StepInputs) -> StepInputs:
    return replace(inputs, block_tables=np.roll(inputs.block_tables, 1, axis=0))


def _context_is_the_chunk_alone(inputs: StepInputs) -> StepInputs:
    return replace(inputs, seq_lens=np.diff(inputs.query_start_loc))


def _new_blocks_overwrite_the_table(real: Any) -> Any:
    def extend(self: InputBatch, row: int, block_ids: tuple[int, ...]) -> None:
        held = int(self.num_blocks[row])
        real(self, row, block_ids)
        if held and block_ids:
            self.block_tables[row, held - 1] = block_ids[0]

    return extend


# -- attention and the model ---------------------------------------------------------------------


def _attention(see: int = 0, scaled: bool = True, flip_heads: bool = False) -> Apply:
    """Attention written plainly, with ``see`` keys too many, no scale, or heads the wrong way."""

    def attend(q: Any, cache_layer: Any, metadata: Any, *, scale: float, workspace: Any) -> Any:
        tokens = metadata.positions.shape[0]
        starts = metadata.query_start_loc.tolist()
        out = torch.empty(tokens, q.shape[1], q.shape[2])
        group = q.shape[1] // cache_layer.shape[2]
        for row, (start, end) in enumerate(itertools.pairwise(starts)):
            length = int(metadata.seq_lens[row])
            blocks = metadata.block_tables[row, : -(-length // cache_layer.shape[3])].long()
            # [blocks, 2, heads, block_size, hd] -> [2, heads, length, hd]
            context = cache_layer[blocks].permute(1, 2, 0, 3, 4).flatten(2, 3)[:, :, :length]
            if flip_heads:
                context = context.flip(1)
            k, v = context.repeat_interleave(group, dim=1)
            scores = q[start:end].transpose(0, 1) @ k.transpose(1, 2) * (scale if scaled else 1.0)
            last = torch.arange(length - (end - start), length).unsqueeze(1)
            seen = torch.arange(length) <= (last + see).clamp_min(0)
            weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
            out[start:end] = (weights @ v).transpose(0, 1)
        return out

    return lambda patch: patch.setattr(kernels, "paged_attention", attend)


def _wrong_rope_half(real: Any) -> Any:
    return lambda *args, **kwargs: real(*args, **(kwargs | {"interleaved": True}))


def _keys_not_rotated(real: Any) -> Any:
    def store(q: Any, k: Any, *args: Any, **kwargs: Any) -> None:
        kept = k.clone()
        real(q, k, *args, **kwargs)
        real(q.clone(), kept, *args, **(kwargs | {"cos_sin": None, "positions": None}))

    return store


def _tied_head_permuted(real: Any) -> Any:
    def init(self: Decoder, spec: Any, linears: Any, tensors: Any, table: Any) -> None:
        real(self, spec, linears, tensors, table)
        self.unembedding = kernels.pack_linear(self.embedding.roll(1, 0), "f32")

    return init


def _epsilon_ignored(real: Any) -> Any:
    def call(self: Norm, x: Any, residual: Any) -> Any:
        return real(replace(self, spec=replace(self.spec, epsilon=1e-12)), x, residual)

    return call


def _bias_dropped(real: Any) -> Any:
    return lambda x, weight, **kwargs: real(x, replace(weight, bias=None), **kwargs)


def _fewer_bits_in_company(real: Any) -> Any:
    """Products of several rows keep 16 bits of what they multiply: far more than float16 would."""

    def linear(x: Any, weight: Any, **kwargs: Any) -> Any:
        if x.shape[0] > 1:
            x = (x.contiguous().view(torch.int32) & ~0xFF).view(torch.float32)
        return real(x, weight, **kwargs)

    return linear


def _gate_and_up_swapped(real: Any) -> Any:
    return lambda up, kind: real(torch.cat(up.chunk(2, dim=1)[::-1], dim=1), kind)


def _one_layers_cache_for_all(real: Any) -> Any:
    def attend(self: Decoder, qkv: Any, step: Any, index: int) -> Any:
        return real(self, qkv, step, 0)

    return attend


# -- rows, resumption, prefixes, forks -----------------------------------------------------------


def _output_forgotten_on_resume(real: Any) -> Any:
    def admit(self: RowSampling, row: int, params: Any, **kwargs: Any) -> None:
        real(self, row, params, **(kwargs | {"output": kwargs["output"][:0]}))

    return admit


def _output_position_off_by_one_on_resume(real: Any) -> Any:
    def admit(self: InputBatch, row: AdmittedRow) -> None:
        real(self, row)
        self.num_prompt[row.row] -= len(row.token_ids) > row.num_prompt_tokens

    return admit


def _counts_of_another_row(real: Any) -> Any:
    def tensors(self: RowSampling, rows: Any, *args: Any) -> Any:
        params = real(self, rows, *args)
        if params.output_counts is None:
            return params
        return replace(params, output_counts=params.output_counts.roll(1, 0))

    return tensors


def _keys_by_place_in_the_batch(real: Any) -> Any:
    def tensors(self: RowSampling, rows: Any, *args: Any) -> Any:
        params = real(self, rows, *args)
        if params.key is None:
            return params
        return replace(params, key=torch.from_numpy(self._keys[: len(rows)].copy()))

    return tensors


def _hit_one_block_too_long(patch: MonkeyPatch) -> None:
    """After a prefix hit, one block more than was cached counts as computed."""
    real_admitted, real_planned = ScheduledRow.admitted, ScheduledRow.planned

    def excess(row: ScheduledRow) -> int:
        chunk = row.chunk
        return 16 if row.is_admitted and chunk.start and chunk.num_tokens > 16 else 0

    def admitted(self: ScheduledRow) -> AdmittedRow:
        row = real_admitted(self)
        return replace(row, num_computed_tokens=row.num_computed_tokens + excess(self))

    def planned(self: ScheduledRow) -> PlannedRow:
        row = real_planned(self)
        return replace(row, num_scheduled_tokens=row.num_scheduled_tokens - excess(self))

    patch.setattr(ScheduledRow, "admitted", admitted)
    patch.setattr(ScheduledRow, "planned", planned)


def _wrong_tokens_logits(real: Any) -> Any:
    def picks(self: ModelRunner, plan: Any, inputs: StepInputs) -> Picks:
        chosen = real(self, plan, inputs)
        return replace(chosen, sampled=np.maximum(chosen.sampled - 1, 0))

    return picks


def _scored_tokens_off_by_one(real: Any) -> Any:
    def picks(self: ModelRunner, plan: Any, inputs: StepInputs) -> Picks:
        chosen = real(self, plan, inputs)
        return replace(chosen, targets=np.roll(chosen.targets, 1))

    return picks


BUGS = (
    PlantedBug(
        "position + 1",
        "logits parity",
        "gpt2",
        _change_inputs(_position_plus_one),
    ),
    PlantedBug(
        "position + 1 after a row's first chunk",
        "chunked equals whole",
        "llama",
        _change_inputs(_position_plus_one_after_the_first_chunk),
    ),
    PlantedBug("stale slot", "chunked equals whole", "llama", _change_inputs(_stale_slot)),
    PlantedBug(
        "the neighbour's block table",
        "batched equals alone",
        "llama",
        _change_inputs(_neighbours_block_table),
    ),
    PlantedBug(
        "context is the chunk alone",
        "chunked equals whole",
        "gpt2",
        _change_inputs(_context_is_the_chunk_alone),
    ),
    PlantedBug(
        "a new block overwrites the last",
        "chunked equals whole",
        "llama",
        _wrap(InputBatch, "_extend", _new_blocks_overwrite_the_table),
    ),
    PlantedBug("mask one short", "logits parity", "llama", _attention(see=-1)),
    PlantedBug("mask one too far", "logits parity", "llama", _attention(see=1)),
    PlantedBug("scale missing", "logits parity", "llama", _attention(scaled=False)),
    PlantedBug("wrong kv head", "logits parity", "llama", _attention(flip_heads=True)),
    PlantedBug(
        "wrong rope half",
        "logits parity",
        "llama",
        _wrap(kernels, "rotary_store_kv", _wrong_rope_half),
    ),
    PlantedBug(
        "keys not rotated",
        "logits parity",
        "llama",
        _wrap(kernels, "rotary_store_kv", _keys_not_rotated),
    ),
    PlantedBug(
        "tied head permuted",
        "logits parity",
        "gpt2",
        _wrap(Decoder, "__init__", _tied_head_permuted),
    ),
    PlantedBug(
        "norm epsilon ignored",
        "logits parity",
        "llama with a large epsilon",
        _wrap(Norm, "__call__", _epsilon_ignored),
    ),
    PlantedBug("bias dropped", "logits parity", "gpt2", _wrap(kernels, "linear", _bias_dropped)),
    PlantedBug(
        "products of several rows in 16 bits",
        "batched equals alone",
        "gpt2",
        _wrap(kernels, "linear", _fewer_bits_in_company),
    ),
    PlantedBug(
        "gate and up swapped",
        "logits parity",
        "llama",
        _wrap(kernels, "gated_activation", _gate_and_up_swapped),
    ),
    PlantedBug(
        "one layer's cache for all",
        "chunked equals whole",
        "llama",
        _wrap(Decoder, "_attend", _one_layers_cache_for_all),
    ),
    PlantedBug(
        "penalty counts not rebuilt on resume",
        "preempted equals not",
        "llama",
        _wrap(RowSampling, "admit", _output_forgotten_on_resume),
    ),
    PlantedBug(
        "output position off by one on resume",
        "preempted equals not",
        "llama",
        _wrap(InputBatch, "_admit", _output_position_off_by_one_on_resume),
    ),
    PlantedBug(
        "penalty counts of another row",
        "batched equals alone",
        "gpt2",
        _wrap(RowSampling, "tensors", _counts_of_another_row),
    ),
    PlantedBug(
        "random keys by place in the batch",
        "batched equals alone",
        "llama",
        _wrap(RowSampling, "tensors", _keys_by_place_in_the_batch),
    ),
    PlantedBug(
        "prefix hit one block too long",
        "cached equals uncached",
        "llama",
        _hit_one_block_too_long,
    ),
    PlantedBug(
        "copy missing on fork",
        "choices equal separate requests",
        "llama",
        _wrap(KVCache, "copy", lambda real: lambda self, pairs: None),
    ),
    PlantedBug(
        "logits of the token before",
        "chunked equals whole",
        "llama",
        _wrap(ModelRunner, "_picks", _wrong_tokens_logits),
    ),
    PlantedBug(
        "scored tokens off by one",
        "scored prompt parity",
        "llama",
        _wrap(ModelRunner, "_picks", _scored_tokens_off_by_one),
    ),
)
