"""Bugs of the kinds that engines have shipped, planted one at a time, and who must notice each.

Each is noticed by a key of checks.CHECKS or of test_planted_bugs.PARITY, which shows that it is.
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
from kernels.cpu.attention_work import StepRows
from kernels.footprint import row_state
from server.engine.step import ScheduledRow
from server.engine.step_plan import AdmittedRow, PlannedRow
from server.execution import model_runner, sampling_batch
from server.execution.layer_parts import Attention, Norm
from server.execution.model import Decoder
from server.execution.rows import Rows
from server.execution.sampler import Sampler
from server.memory import layer_program as program
from tests.equivalence.planting import Apply, Bugs
from weights.spec import ModelSpec

BUGS = Bugs()


@dataclass(frozen=True)
class StepInputs:
    """What a step's T tokens of B rows were given; changed in place."""

    positions: Any  # [T]
    slots: Any  # [T]
    starts: Any  # [B + 1]
    seq_lens: Any  # [B]
    block_tables: Any  # [B, blocks]


def _changes_inputs(
    name: str, caught_by: str, family: str = "llama"
) -> Callable[[Callable[[StepInputs], None]], object]:
    def plant(change: Callable[[StepInputs], None]) -> object:
        @BUGS.wraps(name, caught_by, kernels, "gather_step", family)
        def make(real: Any) -> Any:
            def gather(rows: Any, packet: Any, buffers: Any, *, num_rows: int, **how: Any) -> None:
                real(rows, packet, buffers, num_rows=num_rows, **how)
                starts = buffers.query_start_loc.numpy()[: num_rows + 1]
                positions = buffers.positions.numpy()[: starts[-1]]
                slots = buffers.slot_mapping.numpy()[: starts[-1]]
                seq_lens = buffers.seq_lens.numpy()[:num_rows]
                tables = buffers.block_tables.numpy()[:num_rows]
                change(StepInputs(positions, slots, starts, seq_lens, tables))

            return gather

        return make

    return plant


# -- positions, slots, tables --------------------------------------------------------------------


@_changes_inputs("position + 1", "logits parity", family="gpt2")
def _position_plus_one(inputs: StepInputs) -> None:
    inputs.positions[:] += 1


@_changes_inputs("position + 1 after a row's first chunk", "chunked equals whole")
def _position_plus_one_after_the_first_chunk(inputs: StepInputs) -> None:
    chunks = np.diff(inputs.starts)
    inputs.positions[:] += np.repeat(inputs.seq_lens > chunks, chunks)


@_changes_inputs("stale slot", "chunked equals whole")
def _stale_slot(inputs: StepInputs) -> None:
    """A chunk's first token goes where the chunk before it ended."""
    firsts = inputs.starts[:-1]
    inputs.slots[firsts] -= inputs.positions[firsts] > 0


@_changes_inputs("the neighbour's block table", "batched equals alone")
def _neighbours_block_table(inputs: StepInputs) -> None:
    inputs.block_tables[:] = np.roll(inputs.block_tables, 1, axis=0)


@_changes_inputs("context is the chunk alone", "chunked equals whole", family="gpt2")
def _context_is_the_chunk_alone(inputs: StepInputs) -> None:
    inputs.seq_lens[:] = np.diff(inputs.starts)


@BUGS.wraps("a new block overwrites the last", "chunked equals whole", Rows, "_extend")
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


@BUGS.wraps("the neighbour's slope", "logits parity", kernels, "alibi_slopes", family="bloom")
def _slope_of_the_wrong_head(real: Any) -> Any:
    return lambda *args: real(*args).roll(1)


@BUGS.wraps(
    "slopes of a power of two of heads", "logits parity", kernels, "alibi_slopes", family="bloom"
)
def _slopes_of_a_power_of_two(real: Any) -> Any:
    """As if published models with another number of heads took the first ones of the next power."""
    return lambda heads, *bias: real(1 << (heads - 1).bit_length(), *bias)[:heads]


@BUGS.wraps(
    "half the slope after a row's first chunk",
    "chunked equals whole",
    kernels,
    "paged_attention",
    family="bloom",
)
def _half_the_slope_in_later_chunks(real: Any) -> Any:
    def attend(q: Any, cache_layer: Any, metadata: Any, *, features: Any, **how: Any) -> Any:
        later = bool((metadata.seq_lens > metadata.query_start_loc.diff()).any())
        kept = replace(features, alibi_slopes=features.alibi_slopes * (0.5 if later else 1.0))
        return real(q, cache_layer, metadata, features=kept, **how)

    return attend


@BUGS.wraps("embedding not normalised", "logits parity", Decoder, "__init__", family="bloom")
def _embedding_not_normalised(real: Any) -> Any:
    def init(self: Decoder, *args: Any) -> None:
        real(self, *args)
        self.embedding_norm = None

    return init


@BUGS.wraps("wrong rope half", "logits parity", kernels, "rotary_store_kv")
def _wrong_rope_half(real: Any) -> Any:
    return lambda *args, **kwargs: real(*args, **(kwargs | {"interleaved": True}))


@BUGS.wraps("keys not rotated", "logits parity", kernels, "rotary_store_kv")
def _keys_not_rotated(real: Any) -> Any:
    def store(q: Any, k: Any, *args: Any, **kwargs: Any) -> None:
        kept = k.clone()
        real(q, k, *args, **kwargs)
        real(q.clone(), kept, *args, **(kwargs | {"cos_sin": None, "positions": None}))

    return store


@BUGS.wraps("tied head permuted", "logits parity", Decoder, "__init__", family="gpt2")
def _tied_head_permuted(real: Any) -> Any:
    def init(self: Decoder, *given: Any) -> None:
        real(self, *given)
        rolled = kernels.pack_linear(self.embedding.roll(1, 0), "f32")
        self.unembedding = replace(self.unembedding, weight=rolled)

    return init


@BUGS.wraps(
    "norm epsilon ignored", "logits parity", Norm, "__call__", family="llama with a large epsilon"
)
def _epsilon_ignored(real: Any) -> Any:
    def call(self: Norm, x: Any, residual: Any) -> Any:
        return real(replace(self, spec=replace(self.spec, epsilon=1e-12)), x, residual)

    return call


@BUGS.wraps("bias dropped", "logits parity", kernels, "linear", family="gpt2")
def _bias_dropped(real: Any) -> Any:
    return lambda x, weight, **kwargs: real(x, replace(weight, bias=None), **kwargs)


@BUGS.wraps("norm bias dropped", "logits parity", kernels, "add_layer_norm", family="nemotron")
def _norm_bias_dropped(real: Any) -> Any:
    return lambda x, residual, weight, bias, *rest, **how: real(
        x, residual, weight, None, *rest, **how
    )


@BUGS.wraps("norm offset dropped", "logits parity", kernels, "add_layer_norm", family="nemotron")
def _norm_offset_dropped(real: Any) -> Any:
    return lambda *args, **how: real(*args, **(how | {"weight_offset": 0.0}))


@BUGS.wraps(
    "partial rotary off by a channel",
    "logits parity",
    kernels,
    "rotary_store_kv",
    family="nemotron",
)
def _partial_rotary_off_by_a_channel(real: Any) -> Any:
    """The last channel of a head turns as its first: scores know of no other difference."""

    def store(q: Any, k: Any, *args: Any, **how: Any) -> None:
        for heads in (q, k):
            heads.copy_(heads.roll(1, dims=-1))
        real(q, k, *args, **how)

    return store


@BUGS.wraps(
    "products of several rows in 16 bits", "batched equals alone", kernels, "linear", family="gpt2"
)
def _fewer_bits_in_company(real: Any) -> Any:
    """Products of several rows keep 16 bits of what they multiply: far more than float16 would."""

    def linear(x: Any, weight: Any, **kwargs: Any) -> Any:
        if x.shape[0] > 1:
            x = (x.contiguous().view(torch.int32) & ~0xFF).view(torch.float32)
        return real(x, weight, **kwargs)

    return linear


@BUGS.wraps("gate and up swapped", "logits parity", kernels, "gated_activation")
def _gate_and_up_swapped(real: Any) -> Any:
    return lambda up, kind: real(torch.cat(up.chunk(2, dim=1)[::-1], dim=1), kind)


@BUGS.wraps("one layer's cache for all", "chunked equals whole", Attention, "cache_layer")
def _one_layers_cache_for_all(real: Any) -> Any:
    def cache_layer(self: Attention, cache: Any) -> Any:
        return real(replace(self, cached=replace(self.cached, place=0)), cache)

    return cache_layer


# -- what other kinds of models have --------------------------------------------------------------

WINDOWS, OUTPUTS, SUMS = "windows, caps, four norms", "norms of outputs", "norms of sums"
PARALLEL, UNTURNED = "parallel block", "layers without rotary"


def _changes_features(name: str, **changes: Any) -> None:
    @BUGS.wraps(name, "logits parity", kernels, "paged_attention", family=WINDOWS)
    def plant(real: Any) -> Any:
        def attend(*args: Any, features: Any, **how: Any) -> Any:
            changed = {key: change(getattr(features, key)) for key, change in changes.items()}
            return real(*args, features=replace(features, **changed), **how)

        return attend


_changes_features("cap of scores off", soft_cap=lambda cap: 0.0)
_changes_features("every layer sees all", window=lambda window: 0)


@BUGS.wraps("window + 1", "logits parity", StepRows, "plan", family=WINDOWS)
def _window_one_longer(real: Any) -> Any:
    return lambda self, window: real(self, window and window + 1)


@BUGS.wraps("cap of logits off", "logits parity", Decoder, "__init__", family=WINDOWS)
def _logits_not_capped(real: Any) -> Any:
    def init(self: Decoder, spec: Any, *args: Any) -> None:
        real(self, spec, *args)
        self.spec = replace(spec, logit_soft_cap=None)

    return init


@BUGS.wraps("layers turn that do not", "logits parity", ModelSpec, "layer_rope", family=UNTURNED)
def _every_layer_turns(real: Any) -> Any:
    return lambda self, layer: self.rope


def _changes_program(name: str, family: str) -> Callable[[Callable[[Any], Any]], object]:
    """``change`` is given each step of a layer's program, and returns what stands in its place."""

    def plant(change: Callable[[Any], Any]) -> object:
        @BUGS.wraps(name, "logits parity", program, "layer_program", family)
        def make(real: Any) -> Any:
            def changed(model: Any) -> Any:
                steps = map(change, real(model))
                return tuple(step for step in steps if step is not None)

            return changed

        return make

    return plant


@_changes_program("output not normalised", OUTPUTS)
def _output_not_normalised(step: Any) -> Any:
    return None if step.name == "mlp_output_norm" else step


@_changes_program("sum normalised without its input", SUMS)
def _sum_without_its_input(step: Any) -> Any:
    if not isinstance(step, program.AddNorm):
        return step
    return program.Norm(step.name, step.reads[:1], step.writes, step.weights)


@_changes_program("queries, keys and values not clipped", "olmo")
def _not_clipped(step: Any) -> Any:
    return None if isinstance(step, program.Clip) else step


@_changes_program("queries not scaled by their position", "ministral3")
def _queries_not_scaled(step: Any) -> Any:
    return None if isinstance(step, program.ScaleQueries) else step


@BUGS.wraps(
    "the neighbour's norm of a head", "logits parity", kernels, "add_layer_norm", family="stablelm"
)
def _neighbours_norm(real: Any) -> Any:
    def norm(x: Any, residual: Any, weight: Any, *rest: Any, **how: Any) -> Any:
        own = weight.roll(1, dims=0) if weight.dim() == 2 else weight
        return real(x, residual, own, *rest, **how)

    return norm


@BUGS.wraps(
    "heads normalised before they turn",
    "logits parity",
    kernels,
    "rotary_store_kv",
    family="hunyuan_v1_dense",
)
def _normalised_before_the_turn(real: Any) -> Any:
    return lambda *args, **how: real(*args, **(how | {"norm_after_turn": False}))


@BUGS.wraps("xIELU's alphas exchanged", "logits parity", kernels, "xielu", family="apertus")
def _alphas_exchanged(real: Any) -> Any:
    return lambda x, p, n, *rest: real(x, n, p, *rest)


@_changes_program("the blocks one after the other", PARALLEL)
def _blocks_in_series(step: Any) -> Any:
    """The MLP reads what attention made instead of what attention read."""
    return replace(step, reads=("attention_out",)) if step.name == "up" else step


# -- rows, resumption, prefixes, forks -----------------------------------------------------------


@BUGS.wraps("penalty counts not rebuilt on resume", "preempted equals not", kernels, "count_tokens")
def _output_forgotten_on_resume(real: Any) -> Any:
    def count(
        rows: Any, packet: Any, counts: Any, mask: Any, *, counted_at: int, **how: Any
    ) -> None:
        real(rows, packet, counts, mask, counted_at=counted_at, **how)
        counts[packet[counted_at :: row_state.COUNTED_WORDS][: how["num_counted"]].long()] = 0

    return count


@BUGS.wraps("output position off by one on resume", "preempted equals not", Rows, "_admit")
def _output_position_off_by_one_on_resume(real: Any) -> Any:
    def admit(self: Rows, row: AdmittedRow, packet: Any) -> Any:
        segments = real(self, row, packet)
        self.num_prompt[row.row] -= len(row.token_ids) > row.num_prompt_tokens
        return segments

    return admit


@BUGS.wraps(
    "penalty counts of another row", "batched equals alone", Sampler, "_tensors", family="gpt2"
)
def _counts_of_another_row(real: Any) -> Any:
    def tensors(self: Sampler, *args: Any) -> Any:
        params = real(self, *args)
        if params.output_counts is None:
            return params
        return replace(params, output_counts=params.output_counts.roll(1, 0))

    return tensors


@BUGS.wraps("random keys by place in the batch", "batched equals alone", Sampler, "_tensors")
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


@BUGS.wraps("logits of the token before", "chunked equals whole", model_runner, "plan_sampling")
def _wrong_tokens_logits(real: Any) -> Any:
    def plan(plan: Any, state: Any, step: Any, *rest: Any, **how: Any) -> Any:
        starts = step.starts.copy()
        starts[1:] = np.maximum(starts[1:] - 1, 1)
        return real(plan, state, replace(step, starts=starts), *rest, **how)

    return plan


@BUGS.wraps("scored tokens off by one", "scored prompt parity", sampling_batch, "_scored")
def _scored_tokens_off_by_one(real: Any) -> Any:
    def scored(*args: Any) -> Any:
        tokens, targets = real(*args)
        return tokens, np.roll(targets, 1)

    return scored


BUGS.add("mask one short", "logits parity", _attention(see=-1))
BUGS.add("mask one too far", "logits parity", _attention(see=1))
BUGS.add("scale missing", "logits parity", _attention(scaled=False))
BUGS.add("wrong kv head", "logits parity", _attention(flip_heads=True))
BUGS.add("prefix hit one block too long", "cached equals uncached", _hit_one_block_too_long)
BUGS.wraps("copy missing on fork", "choices equal separate requests", kernels, "copy_blocks")(
    lambda real: lambda *args: None
)
