"""Triton bodies that keep the rows of running sequences and make a step's inputs from them.

One program a row (or a segment): these move some kilobytes a step, and what counts is that there
are few launches and that the host waits for none.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["segments_at", "row_words"])
def write_rows_kernel(
    rows,  # [num_rows, row_words] int32
    packet,  # [words] int32
    segments_at,
    row_words,
    BLOCK: tl.constexpr,
):
    segment = packet + segments_at + 4 * tl.program_id(0)
    row = tl.load(segment)
    column = tl.load(segment + 1)
    source = tl.load(segment + 2)
    length = tl.load(segment + 3)
    to = rows + row.to(tl.int64) * row_words + column
    for first in range(0, length, BLOCK):
        offsets = first + tl.arange(0, BLOCK)
        inside = offsets < length
        words = tl.load(packet + source + offsets, mask=inside, other=0)
        tl.store(to + offsets, words, mask=inside)


@triton.jit
def _sampling_state(
    record,  # one row's
    place,  # among the rows that choose a token
    output_position,
    floats,  # [6, float_stride] float32
    top_k,  # [.] int64
    keys,  # [.] int64
    positions,  # [.] int64
    float_stride,
    TOP_K: tl.constexpr,
    KEY_LOW: tl.constexpr,
    FLOATS_AT: tl.constexpr,
    NUM_FLOATS: tl.constexpr,
):
    columns = tl.arange(0, 8)
    inside = columns < NUM_FLOATS
    bits = tl.load(record + FLOATS_AT + columns, mask=inside, other=0)
    values = bits.to(tl.float32, bitcast=True)
    tl.store(floats + columns * float_stride + place, values, mask=inside)
    tl.store(top_k + place, tl.load(record + TOP_K).to(tl.int64))
    low = tl.load(record + KEY_LOW).to(tl.int64) & 0xFFFFFFFF
    high = tl.load(record + KEY_LOW + 1).to(tl.int64)
    tl.store(keys + place, (high << 32) | low)
    tl.store(positions + place, output_position.to(tl.int64))


@triton.jit(
    do_not_specialize=[
        "row_words",
        "tokens_at",
        "rows_at",
        "starts_at",
        "computed_at",
        "samples_at",
        "outputs_at",
        "table_stride",
        "float_stride",
    ]
)
def step_inputs_kernel(
    rows,  # [num_rows, row_words] int32
    packet,  # [words] int32
    # What the forward pass reads.
    token_ids,  # [T] int64
    positions,  # [T] int64
    slot_mapping,  # [T] int64
    query_start_loc,  # [B + 1] int32
    seq_lens,  # [B] int32
    block_tables,  # [B, table_stride] int32
    # What the sampler reads.
    floats,  # [6, float_stride] float32
    top_k,  # [.] int64
    keys,  # [.] int64
    output_positions,  # [.] int64
    # Where things lie.
    row_words,
    tokens_at,
    rows_at,
    starts_at,
    computed_at,
    samples_at,
    outputs_at,
    table_stride,
    float_stride,
    TABLE_AT: tl.constexpr,
    TOP_K: tl.constexpr,
    KEY_LOW: tl.constexpr,
    FLOATS_AT: tl.constexpr,
    NUM_FLOATS: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    b = tl.program_id(0)
    num_rows = tl.load(packet)
    if b == 0:
        tl.store(query_start_loc, 0)
    if b < num_rows:
        row = tl.load(packet + rows_at + b)
        start = tl.load(packet + starts_at + b)
        end = tl.load(packet + starts_at + b + 1)
        computed = tl.load(packet + computed_at + b)
        sample = tl.load(packet + samples_at + b)
        record = rows + row.to(tl.int64) * row_words
        count = end - start
        context = computed + count
        tl.store(query_start_loc + b + 1, end)
        tl.store(seq_lens + b, context)
        for first in range(0, count, BLOCK):
            offsets = first + tl.arange(0, BLOCK)
            inside = offsets < count
            position = computed + offsets
            token = tl.load(record + tokens_at + position, mask=inside, other=0)
            block = tl.load(record + TABLE_AT + position // PAGE, mask=inside, other=0)
            slot = block.to(tl.int64) * PAGE + position % PAGE
            tl.store(token_ids + start + offsets, token.to(tl.int64), mask=inside)
            tl.store(positions + start + offsets, position.to(tl.int64), mask=inside)
            tl.store(slot_mapping + start + offsets, slot, mask=inside)
        table = block_tables + b.to(tl.int64) * table_stride
        num_blocks = (context + PAGE - 1) // PAGE
        for first in range(0, num_blocks, BLOCK):
            offsets = first + tl.arange(0, BLOCK)
            inside = offsets < num_blocks
            block = tl.load(record + TABLE_AT + offsets, mask=inside, other=0)
            tl.store(table + offsets, block, mask=inside)
        if sample >= 0:
            _sampling_state(
                record,
                sample,
                tl.load(packet + outputs_at + b),
                floats,
                top_k,
                keys,
                output_positions,
                float_stride,
                TOP_K,
                KEY_LOW,
                FLOATS_AT,
                NUM_FLOATS,
            )
    else:
        # A row that fills up a captured batch: one token that goes nowhere and sees nothing.
        at = tl.load(packet + starts_at + num_rows) + b - num_rows
        tl.store(query_start_loc + b + 1, at + 1)
        tl.store(seq_lens + b, 0)
        nothing = tl.zeros((1,), dtype=tl.int64)
        here = at + tl.arange(0, 1)
        tl.store(token_ids + here, nothing)
        tl.store(positions + here, nothing)
        tl.store(slot_mapping + here, nothing - 1)


@triton.jit(do_not_specialize=["counted_at", "row_words", "tokens_at", "vocab_size"])
def count_tokens_kernel(
    rows,  # [num_rows, row_words] int32
    packet,  # [words] int32
    output_counts,  # [num_rows, V] int32
    prompt_mask,  # [num_rows, V] uint8
    counted_at,
    row_words,
    tokens_at,
    vocab_size,
    COUNTED_WORDS: tl.constexpr,
    COUNTS: tl.constexpr,
    COUNTS_PROMPT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Clears a row's counts and mask, then counts its known tokens."""
    entry = packet + counted_at + COUNTED_WORDS * tl.program_id(0)
    row = tl.load(entry).to(tl.int64)
    num_prompt = tl.load(entry + 1)
    num_tokens = tl.load(entry + 2)
    record = rows + row * row_words
    marks = (tl.load(record + COUNTS) & COUNTS_PROMPT) != 0
    counts = output_counts + row * vocab_size
    mask = prompt_mask + row * vocab_size
    for first in range(0, vocab_size, BLOCK):
        ids = first + tl.arange(0, BLOCK)
        inside = ids < vocab_size
        tl.store(counts + ids, tl.zeros((BLOCK,), dtype=tl.int32), mask=inside)
        tl.store(mask + ids, tl.zeros((BLOCK,), dtype=tl.uint8), mask=inside & marks)
    tl.debug_barrier()  # other threads of this program clear what these count
    for first in range(0, num_tokens, BLOCK):
        offsets = first + tl.arange(0, BLOCK)
        inside = offsets < num_tokens
        token = tl.load(record + tokens_at + offsets, mask=inside, other=0)
        generated = inside & (offsets >= num_prompt)
        tl.atomic_add(counts + token, 1, mask=generated, sem="relaxed")
        prompt = inside & (offsets < num_prompt) & marks
        tl.store(mask + token, tl.full((BLOCK,), 1, dtype=tl.uint8), mask=prompt)


@triton.jit(
    do_not_specialize=[
        "row_words",
        "tokens_at",
        "max_tokens",
        "vocab_size",
        "rows_at",
        "starts_at",
        "computed_at",
        "samples_at",
    ]
)
def commit_tokens_kernel(
    rows,  # [num_rows, row_words] int32
    packet,  # [words] int32
    token_ids,  # [S] int64
    non_finite,  # [S] uint8
    output_counts,  # [num_rows, V] int32
    results,  # [S] int32
    row_words,
    tokens_at,
    max_tokens,
    vocab_size,
    rows_at,
    starts_at,
    computed_at,
    samples_at,
    COUNTS: tl.constexpr,
    COUNTS_OUTPUT: tl.constexpr,
):
    b = tl.program_id(0)
    sample = tl.load(packet + samples_at + b)
    if sample >= 0:
        token = tl.load(token_ids + sample).to(tl.int32)
        if tl.load(non_finite + sample) != 0:
            tl.store(results + sample, -1)
        else:
            tl.store(results + sample, token)
            row = tl.load(packet + rows_at + b).to(tl.int64)
            record = rows + row * row_words
            chunk = tl.load(packet + starts_at + b + 1) - tl.load(packet + starts_at + b)
            position = tl.load(packet + computed_at + b) + chunk
            if position < max_tokens:
                tl.store(record + tokens_at + position, token)
                if (tl.load(record + COUNTS) & COUNTS_OUTPUT) != 0:
                    tl.atomic_add(output_counts + row * vocab_size + token, 1, sem="relaxed")
