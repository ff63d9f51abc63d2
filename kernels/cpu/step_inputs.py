"""Rows and step inputs on a CPU: what the GPU's kernels do, with index arithmetic."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.footprint import row_state
from kernels.footprint.row_state import COUNTED_WORDS, SEGMENT_WORDS, RowLayout, StepTable
from kernels.types import StepBuffers


def write_rows(rows: Tensor, packet: Tensor, segments_at: int, num_segments: int) -> None:
    segments = packet[segments_at : segments_at + SEGMENT_WORDS * num_segments]
    for row, column, source, length in segments.view(-1, SEGMENT_WORDS).tolist():
        rows[row, column : column + length] = packet[source : source + length]


def gather_step(
    rows: Tensor,
    packet: Tensor,
    buffers: StepBuffers,
    layout: RowLayout,
    table: StepTable,
    num_rows: int,
    block_size: int,
) -> None:
    given = int(packet[0])
    records = rows.index_select(0, _column(packet, table.rows_at, given))
    starts = _column(packet, table.starts_at, given + 1)
    computed = _column(packet, table.computed_at, given)
    counts = starts.diff()
    tokens = int(starts[-1])
    of_token = torch.repeat_interleave(torch.arange(given), counts)
    positions = (computed - starts[:-1])[of_token] + torch.arange(tokens)
    blocks = records[of_token, row_state.TABLE_AT + positions // block_size].long()
    buffers.token_ids[:tokens] = records[of_token, layout.tokens_at + positions].long()
    buffers.positions[:tokens] = positions
    buffers.slot_mapping[:tokens] = blocks * block_size + positions % block_size
    buffers.query_start_loc[: given + 1] = starts
    contexts = computed + counts
    buffers.seq_lens[:given] = contexts
    width = -(-int(contexts.max()) // block_size) if given else 0
    table_words = records[:, row_state.TABLE_AT : row_state.TABLE_AT + width]
    buffers.block_tables[:given, :width] = table_words
    _fill_up(buffers, tokens, given, num_rows)
    _gather_sampling(records, packet, buffers, table, given)


def _fill_up(buffers: StepBuffers, tokens: int, given: int, num_rows: int) -> None:
    """Rows of one token that goes nowhere and sees nothing."""
    more = num_rows - given
    buffers.token_ids[tokens : tokens + more] = 0
    buffers.positions[tokens : tokens + more] = 0
    buffers.slot_mapping[tokens : tokens + more] = -1
    buffers.query_start_loc[given + 1 : num_rows + 1] = torch.arange(tokens + 1, tokens + more + 1)
    buffers.seq_lens[given:num_rows] = 0


def _gather_sampling(
    records: Tensor, packet: Tensor, buffers: StepBuffers, table: StepTable, given: int
) -> None:
    samples = _column(packet, table.samples_at, given)
    chosen = (samples >= 0).nonzero().view(-1)
    places, heads = samples[chosen], records[chosen]
    floats = heads[:, row_state.FLOATS_AT : row_state.FLOATS_AT + row_state.NUM_FLOATS]
    buffers.floats[:, places] = floats.contiguous().view(torch.float32).t()
    buffers.top_k[places] = heads[:, row_state.TOP_K].long()
    low = heads[:, row_state.KEY_LOW].long() & 0xFFFFFFFF
    buffers.keys[places] = (heads[:, row_state.KEY_HIGH].long() << 32) | low
    buffers.output_positions[places] = _column(packet, table.outputs_at, given)[chosen]


def count_tokens(
    rows: Tensor,
    packet: Tensor,
    output_counts: Tensor,
    prompt_mask: Tensor,
    layout: RowLayout,
    counted_at: int,
    num_counted: int,
) -> None:
    entries = packet[counted_at : counted_at + COUNTED_WORDS * num_counted]
    for row, num_prompt, num_tokens in entries.view(-1, COUNTED_WORDS).tolist():
        tokens = rows[row, layout.tokens_at : layout.tokens_at + num_tokens].long()
        output = tokens[num_prompt:].bincount(minlength=output_counts.shape[1])
        output_counts[row].copy_(output)
        if int(rows[row, row_state.COUNTS]) & row_state.COUNTS_PROMPT:
            prompt_mask[row].zero_()
            prompt_mask[row, tokens[:num_prompt]] = True


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
    results.copy_(token_ids.masked_fill(non_finite, -1))
    samples = _column(packet, table.samples_at, num_rows)
    chunks = _column(packet, table.starts_at, num_rows + 1).diff()
    positions = _column(packet, table.computed_at, num_rows) + chunks
    gets = (samples >= 0) & (results.index_select(0, samples.clamp(min=0)) >= 0)
    gets &= positions < layout.max_tokens
    b = gets.nonzero().view(-1)
    row, tokens = _column(packet, table.rows_at, num_rows)[b], token_ids[samples[b]]
    rows[row, layout.tokens_at + positions[b]] = tokens.int()
    counts = (rows[row, row_state.COUNTS] & row_state.COUNTS_OUTPUT) != 0
    output_counts[row[counts], tokens[counts]] += 1


def _column(packet: Tensor, first: int, length: int) -> Tensor:
    return packet[first : first + length].long()
