"""What a runner holds between steps: its rows, the inputs of a step, and what a step answers.

Rows lie on the device (kernels.footprint.row_state has their layout). What changes about them and
which take part goes there as one packet; what a step answers comes back beside it, in a slot. A
device with memory of its own copies packets and answers from and to pinned memory of the host, of
which there are NUM_SLOTS slots, because a step is put together while the one before it runs. Where
device and host share their memory there is one slot, in place, and nothing is copied.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

from kernels.footprint.row_state import FLOATS_AT, NUM_FLOATS, TABLE_AT, RowLayout, StepTable
from server.engine.engine_config import EngineConfig
from server.memory.kinds import Shapes
from server.memory.kv_groups import layer_groups
from server.units import round_up
from weights.spec import ModelSpec

NUM_SLOTS = 2  # steps in flight
MOST_ROW_WORDS = 2**31 - 1  # of all records: places in them are int32
FEW_LOGPROBS = 5  # what most who ask for alternatives ask for


@dataclass(frozen=True, slots=True)
class LogitLimits:
    """How many rows of logits exist at once, how many of these are sampled or ranked at a time, and
    how many where penalties read tables. ``num_tops`` are the numbers of alternatives that are
    computed, rising."""

    rows: int
    sampled_rows: int
    penalised_rows: int
    num_tops: tuple[int, ...]

    def num_top(self, asked: int) -> int:
        """What is computed where ``asked`` are asked for."""
        return self.num_tops[bisect_left(self.num_tops, asked)]

    def spans(self, total: int) -> tuple[tuple[int, int], ...]:
        """First and behind the last of the rows, out of so many, whose logits exist at once."""
        firsts = range(0, total, self.rows)
        return tuple((first, min(first + self.rows, total)) for first in firsts)


def few_num_tops(max_logprobs: int) -> tuple[int, ...]:
    """Where each number of alternatives has a kernel of its own, which is compiled."""
    return tuple(sorted({0, min(FEW_LOGPROBS, max_logprobs), max_logprobs}))


def row_layout(model: ModelSpec, config: EngineConfig) -> RowLayout:
    return RowLayout(
        max_blocks=config.max_blocks_per_row,
        max_tokens=config.scheduler.max_model_len,
        groups=len(layer_groups(model)),
    )


def row_words(model: ModelSpec, config: EngineConfig) -> int:
    """int32 words of the records of all rows; a runner refuses more than MOST_ROW_WORDS."""
    return config.scheduler.max_num_seqs * row_layout(model, config).words


def packet_words(model: ModelSpec, config: EngineConfig) -> int:
    """int32 words of a packet: the step table, and room for what plans usually change.

    A plan that needs more (many long contexts resumed at once, thousands of biases) is uploaded
    from memory that is taken for that one step.
    """
    rows, tokens = config.scheduler.max_num_seqs, config.scheduler.max_num_batched_tokens
    each_row = 64 + TABLE_AT + FLOATS_AT + len(layer_groups(model)) * config.max_blocks_per_row
    words = (
        StepTable(rows).words + rows * each_row + 4 * tokens + 2 * config.scheduler.max_model_len
    )
    return round_up(words, 16)


def row_shapes(model: ModelSpec, config: EngineConfig) -> Shapes:
    """What rows keep between steps, then what a step is given, gathered from them in place."""
    tokens, rows, vocab_size = (
        config.scheduler.max_num_batched_tokens,
        config.scheduler.max_num_seqs,
        model.vocab_size,
    )
    aligned = round_up(rows, 16)  # each row of floats starts on a cache line
    layout = row_layout(model, config)
    return (
        ("row_state", (rows, layout.words), "i32"),
        ("output_counts", (rows, vocab_size), "i32"),
        ("prompt_mask", (rows, vocab_size), "bool"),
        ("step_token_ids", (tokens,), "i64"),
        ("positions", (tokens,), "i64"),
        ("slot_mapping", (layout.groups, tokens), "i64"),
        ("query_start_loc", (rows + 1,), "i32"),
        ("seq_lens", (rows,), "i32"),
        ("step_block_tables", (layout.groups, rows, layout.max_blocks), "i32"),
        ("step_floats", (NUM_FLOATS, aligned), "f32"),
        ("step_top_k", (rows,), "i64"),
        ("step_keys", (rows,), "i64"),
        ("step_output_positions", (rows,), "i64"),
    )


def own_memory_shapes(model: ModelSpec, config: EngineConfig) -> Shapes:
    """Where a device with memory of its own has what it exchanges with a slot."""
    return (
        ("packet", (packet_words(model, config),), "i32"),
        ("chosen", (config.scheduler.max_num_seqs,), "i32"),
    )


def captured_shapes(model: ModelSpec, config: EngineConfig) -> Shapes:
    """Where captured decode steps leave what is sampled from."""
    return (("logits", (config.scheduler.logit_rows, model.vocab_size), "f32"),)


def slot_shapes(model: ModelSpec, config: EngineConfig, max_decode_steps: int) -> Shapes:
    """One slot: a packet on its way, and what comes of its step, which gives a row at most so many
    tokens."""
    rows, width = config.scheduler.max_num_seqs, 1 + config.scheduler.max_logprobs
    scored = config.scheduler.max_num_batched_tokens
    return (
        ("packet", (packet_words(model, config),), "i32"),
        ("chosen", (rows * max_decode_steps,), "i32"),
        ("chosen_logprob_ids", (rows * width,), "i32"),
        ("chosen_logprobs", (rows * width,), "f32"),
        ("scored_ids", (scored * width,), "i32"),
        ("scored_logprobs", (scored * width,), "f32"),
    )
