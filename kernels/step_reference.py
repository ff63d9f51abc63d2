"""Rows and step inputs written plainly, word by word: the oracle of kernels.step_inputs."""

from __future__ import annotations

import struct

from torch import Tensor

from kernels.footprint import ceil_div, row_state
from kernels.footprint.row_state import COUNTED_WORDS, SEGMENT_WORDS, RowLayout, StepTable
from kernels.types import StepBuffers


def write_rows(rows: Tensor, packet: Tensor, *, segments_at: int, num_segments: int) -> None:
    words = packet.tolist()
    for segment in range(num_segments):
        at = segments_at + SEGMENT_WORDS * segment
        row, column, source, length = words[at : at + SEGMENT_WORDS]
        for i in range(length):
            rows[row, column + i] = words[source + i]


def gather_step(
    rows: Tensor,
    packet: Tensor,
    buffers: StepBuffers,
    *,
    layout: RowLayout,
    table: StepTable,
    num_rows: int,
    block_size: int,
    group: int = 0,
) -> None:
    words = packet.tolist()
    tokens = 0
    buffers.query_start_loc[0] = 0
    for b in range(words[0]):
        record = rows[words[table.rows_at + b]].tolist()
        computed = words[table.computed_at + b]
        start, end = words[table.starts_at + b : table.starts_at + b + 2]
        for token in range(start, end):
            position = computed + token - start
            block = record[layout.table_at(group) + position // block_size]
            buffers.token_ids[token] = record[layout.tokens_at + position]
            buffers.positions[token] = position
            buffers.slot_mapping[token] = block * block_size + position % block_size
        context = computed + end - start
        buffers.query_start_loc[b + 1] = end
        buffers.seq_lens[b] = context
        for i in range(ceil_div(context, block_size)):
            buffers.block_tables[b, i] = record[layout.table_at(group) + i]
        place = words[table.samples_at + b]
        if place >= 0:
            _sampling(record, place, words[table.outputs_at + b], buffers)
        tokens = end
    for b in range(words[0], num_rows):
        buffers.token_ids[tokens] = 0
        buffers.positions[tokens] = 0
        buffers.slot_mapping[tokens] = -1
        tokens += 1
        buffers.query_start_loc[b + 1] = tokens
        buffers.seq_lens[b] = 0


def _sampling(record: list[int], place: int, output: int, buffers: StepBuffers) -> None:
    for i in range(row_state.NUM_FLOATS):
        bits = struct.pack("<i", record[row_state.FLOATS_AT + i])
        buffers.floats[i, place] = struct.unpack("<f", bits)[0]
    buffers.top_k[place] = record[row_state.TOP_K]
    key = struct.pack("<ii", record[row_state.KEY_LOW], record[row_state.KEY_HIGH])
    buffers.keys[place] = struct.unpack("<q", key)[0]
    buffers.output_positions[place] = output


def count_tokens(
    rows: Tensor,
    packet: Tensor,
    output_counts: Tensor,
    prompt_mask: Tensor,
    *,
    layout: RowLayout,
    counted_at: int,
    num_counted: int,
) -> None:
    words = packet.tolist()
    for entry in range(num_counted):
        at = counted_at + COUNTED_WORDS * entry
        row, num_prompt, num_tokens = words[at : at + COUNTED_WORDS]
        marks = int(rows[row, row_state.COUNTS]) & row_state.COUNTS_PROMPT
        output_counts[row] = 0
        if marks:
            prompt_mask[row] = False
        for i in range(num_tokens):
            token = int(rows[row, layout.tokens_at + i])
            if i >= num_prompt:
                output_counts[row, token] += 1
            elif marks:
                prompt_mask[row, token] = True


def commit_tokens(
    rows: Tensor,
    packet: Tensor,
    token_ids: Tensor,
    non_finite: Tensor,
    output_counts: Tensor,
    results: Tensor,
    *,
    layout: RowLayout,
    table: StepTable,
    num_rows: int,
) -> None:
    words = packet.tolist()
    for b in range(num_rows):
        place = words[table.samples_at + b]
        if place < 0:
            continue
        if bool(non_finite[place]):
            results[place] = -1
            continue
        token = int(token_ids[place])
        results[place] = token
        start, end = words[table.starts_at + b : table.starts_at + b + 2]
        row, position = words[table.rows_at + b], words[table.computed_at + b] + end - start
        if position < layout.max_tokens:
            rows[row, layout.tokens_at + position] = token
            if int(rows[row, row_state.COUNTS]) & row_state.COUNTS_OUTPUT:
                output_counts[row, token] += 1
