"""Rows and step inputs on a CPU: what the GPU's kernels do, with index arithmetic.

numpy views of the same memory, because small arrays cost it a third of what they cost torch, and
a step of one row is made of small arrays.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from torch import Tensor

from kernels.footprint import ceil_div, row_state
from kernels.footprint.row_state import COUNTED_WORDS, SEGMENT_WORDS, RowLayout, StepTable
from kernels.types import StepBuffers

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]


def write_rows(rows: Tensor, packet: Tensor, segments_at: int, num_segments: int) -> None:
    records, words = rows.numpy(), packet.numpy()
    segments = words[segments_at : segments_at + SEGMENT_WORDS * num_segments]
    for row, column, source, length in segments.reshape(-1, SEGMENT_WORDS).tolist():
        records[row, column : column + length] = words[source : source + length]


def gather_step(
    rows: Tensor,
    packet: Tensor,
    buffers: StepBuffers,
    layout: RowLayout,
    table: StepTable,
    num_rows: int,
    block_size: int,
    group: int = 0,
) -> None:
    records, words = rows.numpy(), packet.numpy()
    given = int(words[0])
    row = words[table.rows_at : table.rows_at + given]
    starts = words[table.starts_at : table.starts_at + given + 1]
    computed = words[table.computed_at : table.computed_at + given]
    tokens = int(starts[-1])
    if tokens == given:  # one token of each row
        row_of_token, positions, contexts = row, computed, computed + 1
    else:
        counts = starts[1:] - starts[:-1]
        row_of_token = np.repeat(row, counts)
        positions = np.repeat(computed - starts[:-1], counts) + np.arange(tokens, dtype=np.int32)
        contexts = computed + counts
    block, table_at = positions // block_size, layout.table_at(group)
    slots = records[row_of_token, table_at + block].astype(np.int64)
    slots *= block_size
    slots += positions - block * block_size
    buffers.token_ids.numpy()[:tokens] = records[row_of_token, layout.tokens_at + positions]
    buffers.positions.numpy()[:tokens] = positions
    buffers.slot_mapping.numpy()[:tokens] = slots
    buffers.query_start_loc.numpy()[: given + 1] = starts
    buffers.seq_lens.numpy()[:given] = contexts
    width = ceil_div(int(contexts.max(initial=0)), block_size)
    tables = records[:, table_at : table_at + width]
    buffers.block_tables.numpy()[:given, :width] = tables[row]
    if given < num_rows:
        _fill_up(buffers, tokens, given, num_rows)
    samples = words[table.samples_at : table.samples_at + given]
    outputs = words[table.outputs_at : table.outputs_at + given]
    _gather_sampling(records, row, samples, outputs, buffers)


def _fill_up(buffers: StepBuffers, tokens: int, given: int, num_rows: int) -> None:
    """Rows of one token that goes nowhere and sees nothing."""
    more = slice(tokens, tokens + num_rows - given)
    buffers.token_ids.numpy()[more] = 0
    buffers.positions.numpy()[more] = 0
    buffers.slot_mapping.numpy()[more] = -1
    starts = buffers.query_start_loc.numpy()
    starts[given + 1 : num_rows + 1] = np.arange(more.start + 1, more.stop + 1)
    buffers.seq_lens.numpy()[given:num_rows] = 0


def _gather_sampling(
    records: Int32, row: Int32, samples: Int32, outputs: Int32, buffers: StepBuffers
) -> None:
    chosen = (samples >= 0).nonzero()[0]
    places, heads = samples[chosen], records[row[chosen], : row_state.TABLE_AT]
    floats = heads[:, row_state.FLOATS_AT : row_state.FLOATS_AT + row_state.NUM_FLOATS]
    buffers.floats.numpy()[:, places] = floats.T.view(np.float32)
    buffers.top_k.numpy()[places] = heads[:, row_state.TOP_K]
    keys = heads[:, row_state.KEY_LOW : row_state.KEY_HIGH + 1].copy()
    buffers.keys.numpy()[places] = keys.view(np.int64)[:, 0]
    buffers.output_positions.numpy()[places] = outputs[chosen]


def count_tokens(
    rows: Tensor,
    packet: Tensor,
    output_counts: Tensor,
    prompt_mask: Tensor,
    layout: RowLayout,
    counted_at: int,
    num_counted: int,
) -> None:
    records, counts, mask = rows.numpy(), output_counts.numpy(), prompt_mask.numpy()
    entries = packet.numpy()[counted_at : counted_at + COUNTED_WORDS * num_counted]
    for row, num_prompt, num_tokens in entries.reshape(-1, COUNTED_WORDS).tolist():
        tokens = records[row, layout.tokens_at : layout.tokens_at + num_tokens]
        counts[row] = np.bincount(tokens[num_prompt:], minlength=counts.shape[1])
        if records[row, row_state.COUNTS] & row_state.COUNTS_PROMPT:
            mask[row] = False
            mask[row, tokens[:num_prompt]] = True


def commit_tokens(
    rows: Tensor,
    packet: Tensor,
    token_ids: Tensor,
    non_finite: Tensor,
    output_counts: Tensor,
    results: Tensor,
    layout: RowLayout,
    table: StepTable,
    num_rows: int,
) -> None:
    records, words, given = rows.numpy(), packet.numpy(), results.numpy()
    given[:] = token_ids.numpy()
    given[non_finite.numpy()] = -1
    starts = words[table.starts_at : table.starts_at + num_rows + 1]
    positions = words[table.computed_at : table.computed_at + num_rows] + starts[1:] - starts[:-1]
    samples = words[table.samples_at : table.samples_at + num_rows]
    row, tokens = words[table.rows_at : table.rows_at + num_rows], given[samples]
    gets = (samples >= 0) & (tokens >= 0) & (positions < layout.max_tokens)
    if not gets.all():
        row, tokens, positions = row[gets], tokens[gets], positions[gets]
    records[row, layout.tokens_at + positions] = tokens
    counted = (records[row, row_state.COUNTS] & row_state.COUNTS_OUTPUT).nonzero()[0]
    if len(counted):
        output_counts.numpy()[row[counted], tokens[counted]] += 1
