"""What a runner on a GPU holds between steps: device buffers, and their pinned mirrors.

Rows live on the device (kernels.footprint.row_state has their layout). A step's packet is put
together in pinned memory and uploaded in one copy; what a step answers comes back into pinned
memory. There are two of each pinned buffer, because a step is put together while the one before it
runs.
"""

from __future__ import annotations

from kernels.footprint.row_state import FLOATS_AT, NUM_FLOATS, TABLE_AT, RowLayout, StepTable
from server.memory.kinds import Shapes
from server.memory.runner_config import RunnerConfig
from weights.spec import ModelSpec

NUM_SLOTS = 2  # steps in flight
MOST_ROW_WORDS = 2**31 - 1  # of all records: places in them are int32


def row_layout(config: RunnerConfig) -> RowLayout:
    return RowLayout(max_blocks=config.max_blocks_per_row, max_tokens=config.max_model_len)


def row_words(config: RunnerConfig) -> int:
    """int32 words of the records of all rows; a runner refuses more than MOST_ROW_WORDS."""
    return config.max_num_seqs * row_layout(config).words


def packet_words(config: RunnerConfig) -> int:
    """int32 words of a packet: the step table, and room for what plans usually change.

    A plan that needs more (many long contexts resumed at once, thousands of biases) is uploaded
    from memory that is taken for that one step.
    """
    rows, tokens = config.max_num_seqs, config.max_num_batched_tokens
    each_row = 64 + TABLE_AT + FLOATS_AT + config.max_blocks_per_row
    words = StepTable(rows).words + rows * each_row + 4 * tokens + 2 * config.max_model_len
    return -(-words // 16) * 16


def device_shapes(model: ModelSpec, config: RunnerConfig) -> Shapes:
    """Everything on the device but the KV cache, the rotary table and the workspace."""
    tokens, rows, vocab_size = config.max_num_batched_tokens, config.max_num_seqs, model.vocab_size
    aligned = -(-rows // 16) * 16  # each row of floats starts on a cache line
    return (
        ("row_state", (rows, row_layout(config).words), "i32"),
        ("output_counts", (rows, vocab_size), "i32"),
        ("prompt_mask", (rows, vocab_size), "bool"),
        ("packet", (packet_words(config),), "i32"),
        ("step_token_ids", (tokens,), "i64"),
        ("positions", (tokens,), "i64"),
        ("slot_mapping", (tokens,), "i64"),
        ("query_start_loc", (rows + 1,), "i32"),
        ("seq_lens", (rows,), "i32"),
        ("step_block_tables", (rows, config.max_blocks_per_row), "i32"),
        ("step_floats", (NUM_FLOATS, aligned), "f32"),
        ("step_top_k", (rows,), "i64"),
        ("step_keys", (rows,), "i64"),
        ("step_output_positions", (rows,), "i64"),
        ("logits", (config.logit_rows, vocab_size), "f32"),
        ("chosen_ids", (rows,), "i64"),
        ("chosen_non_finite", (rows,), "bool"),
        ("chosen", (rows,), "i32"),
    )


def pinned_shapes(config: RunnerConfig) -> Shapes:
    """Host memory that the device copies from and to: one set, of which there are NUM_SLOTS."""
    rows, width = config.max_num_seqs, 1 + config.max_logprobs
    scored = config.max_num_batched_tokens
    return (
        ("packet", (packet_words(config),), "i32"),
        ("chosen", (rows,), "i32"),
        ("chosen_logprob_ids", (rows * width,), "i32"),
        ("chosen_logprobs", (rows * width,), "f32"),
        ("scored_ids", (scored * width,), "i32"),
        ("scored_logprobs", (scored * width,), "f32"),
    )
