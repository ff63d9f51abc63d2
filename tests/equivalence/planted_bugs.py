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
from kernels.footprint import row_state
from server.engine.step import ScheduledRow
from server.engine.step_plan import AdmittedRow, PlannedRow
from server.execution import model_runner, sampling_batch
from server.execution.layers import Attention, Norm
from server.execution.model import Decoder
from server.execution.rows import Rows
from server.execution.sampler import Sampler

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


@dataclass(frozen=True)
class StepInputs:
    """What a step's T tokens of B rows were given; changed in place."""

    positions: Any  # [T]
    slots: Any  # [T]
    starts: Any  # [B + 1]
    seq_lens: Any  # [B]
    block_tables: Any  # [B, blocks]


def _change_inputs(change: Callable[[StepInputs], None]) -> Apply:
    def make(real: Any) -> Any:
        def gather(rows: Any, packet: Any, buffers: Any, *, num_rows: int, **how: Any) -> None:
            real(rows, packet, buffers, num_rows=num_rows, **how)
            starts = buffers.query_start_loc.numpy()[: num_rows + 1]
            change(
                StepInputs(
                    positions=buffers.positions.numpy()[: starts[-1]],
                    slots=buffers.slot_mapping.numpy()[: starts[-1]],
                    starts=starts,
                    seq_lens=buffers.seq_lens.numpy()[:num_rows],
                    block_tables=buffers.block_tables.numpy()[:num_rows],
                )
            )

        return gather

    return _wrap(kernels, "gather_step", make)


# -- positions, slots, tables --------------------------------------------------------------------


def _position_plus_one(inputs: StepInputs) -> None:
    inputs.positions[:] += 1


def _position_plus_one_after_the_first_chunk(inputs: StepInputs) -> None:
    chunks = np.diff(inputs.starts)
    inputs.positions[:] += np.repeat(inputs.seq_lens > chunks, chunks)


def _stale_slot(inputs: StepInputs) -> None:
    """A chunk's first token goes where the chunk before it ended."""
    firsts = inputs.starts[:-1]
    inputs.slots[firsts] -= inputs.positions[firsts] > 0


def _neighbours_block_table(inputs: StepInputs) -> None:
    inputs.block_tables[:] = np.roll(inputs.block_tables, 1, axis=0)


def _context_is_the_chunk_alone(inputs: StepInputs) -> None:
    inputs.seq_lens[:] = np.diff(inputs.starts)


def _new_blocks_overwrite_the_table(real: Any) -> Any:
    def extend(self: Rows, row: int, *args: Any) -> list[int]:
        segment: list[int] = real(self, row, *args)
        _, column, first, _ = segment
        return [*segment, row, column - 1, first, 1]

    return extend


# -- attention and the model ---------------------------------------------------------------------


def _attention(see: int = 0, scaled: bool = True, flip_heads: bool = False) -> Apply:
    """Attention written plainly, with ``see`` keys too many, no scale, or heads the wrong way."""

    def attend(q: Any, cache_layer: Any, metadata: Any, *, scale: float, **_: Any) -> Any:
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
        rolled = kernels.pack_linear(self.embedding.roll(1, 0), "f32")
        self.unembedding = replace(self.unembedding, weight=rolled)

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
    def attend(self: Attention, qkv: Any, step: Any) -> Any:
        return real(replace(self, layer=0), qkv, step)

    return attend


# -- rows, resumption, prefixes, forks -----------------------------------------------------------


def _output_forgotten_on_resume(real: Any) -> Any:
    def count(
        rows: Any, packet: Any, counts: Any, mask: Any, *, counted_at: int, **how: Any
    ) -> None:
        real(rows, packet, counts, mask, counted_at=counted_at, **how)
        counts[packet[counted_at :: row_state.COUNTED_WORDS][: how["num_counted"]].long()] = 0

    return count


def _output_position_off_by_one_on_resume(real: Any) -> Any:
    def admit(self: Rows, row: AdmittedRow, packet: Any) -> Any:
        segments = real(self, row, packet)
        self.num_prompt[row.row] -= len(row.token_ids) > row.num_prompt_tokens
        return segments

    return admit


def _counts_of_another_row(real: Any) -> Any:
    def tensors(self: Sampler, *args: Any) -> Any:
        params = real(self, *args)
        if params.output_counts is None:
            return params
        return replace(params, output_counts=params.output_counts.roll(1, 0))

    return tensors


def _keys_by_place_in_the_batch(real: Any) -> Any:
    def tensors(self: Sampler, *args: Any) -> Any:
        params = real(self, *args)
        if params.key is None:
            return params
        words = self._rows[: len(params.key), row_state.KEY_LOW : row_state.KEY_HIGH + 1]
        return replace(params, key=words.contiguous().view(torch.int64).view(-1))

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
    def plan(plan: Any, state: Any, step: Any, *rest: Any, **how: Any) -> Any:
        starts = step.starts.copy()
        starts[1:] = np.maximum(starts[1:] - 1, 1)
        return real(plan, state, replace(step, starts=starts), *rest, **how)

    return plan


def _scored_tokens_off_by_one(real: Any) -> Any:
    def scored(*args: Any) -> Any:
        tokens, targets = real(*args)
        return tokens, np.roll(targets, 1)

    return scored


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
        _wrap(Rows, "_extend", _new_blocks_overwrite_the_table),
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
        _wrap(Attention, "attend", _one_layers_cache_for_all),
    ),
    PlantedBug(
        "penalty counts not rebuilt on resume",
        "preempted equals not",
        "llama",
        _wrap(kernels, "count_tokens", _output_forgotten_on_resume),
    ),
    PlantedBug(
        "output position off by one on resume",
        "preempted equals not",
        "llama",
        _wrap(Rows, "_admit", _output_position_off_by_one_on_resume),
    ),
    PlantedBug(
        "penalty counts of another row",
        "batched equals alone",
        "gpt2",
        _wrap(Sampler, "_tensors", _counts_of_another_row),
    ),
    PlantedBug(
        "random keys by place in the batch",
        "batched equals alone",
        "llama",
        _wrap(Sampler, "_tensors", _keys_by_place_in_the_batch),
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
        _wrap(kernels, "copy_blocks", lambda real: lambda *args: None),
    ),
    PlantedBug(
        "logits of the token before",
        "chunked equals whole",
        "llama",
        _wrap(model_runner, "plan_sampling", _wrong_tokens_logits),
    ),
    PlantedBug(
        "scored tokens off by one",
        "scored prompt parity",
        "llama",
        _wrap(sampling_batch, "_scored", _scored_tokens_off_by_one),
    ),
)
