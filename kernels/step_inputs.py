"""Rows of running sequences on the device, and the inputs of a step made from them.

The host says in a packet what changes and which rows take part (kernels.footprint.row_state has
both layouts); these functions apply it without the host waiting for the device. Packets are
trusted: nothing in them is read back, so the row numbers, columns and counts in them must be right.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.checks import (
    check_contiguous,
    check_dtype,
    check_range,
    check_same_device,
    check_shape,
)
from kernels.dispatch import select
from kernels.footprint.row_state import COUNTED_WORDS, SEGMENT_WORDS, RowLayout, StepTable
from kernels.types import StepBuffers

_INT = (torch.int32,)
_LONG = (torch.int64,)


def write_rows(rows: Tensor, packet: Tensor, *, segments_at: int, num_segments: int) -> None:
    """Copies ``num_segments`` pieces of the packet into records.

    rows is [num_rows, words] int32, packet [P] int32. Segments lie in the packet from
    ``segments_at`` on, each (row, first word of the record, first word of the packet, number of
    words); their destinations are distinct. Raises ValueError for a wrong argument.
    """
    _check_packet(rows, packet, segments_at, SEGMENT_WORDS * num_segments)
    if num_segments:
        run = select("write_rows", rows.device)
        run(rows, packet, segments_at, num_segments)


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
    """A step's token ids, positions, slots, starts, lengths, block tables and sampling parameters.

    The packet's own count of rows is read on the device; ``num_rows`` is what the batch is filled
    up to. A row beyond the count has one token of id 0 at position 0, slot -1 and a context of no
    tokens, so it must be skipped by what reads or writes the cache. Block tables are written as far
    as a row's context reaches; sampling parameters of the rows that choose a token lie in the order
    of the packet's ``sample`` column. Slots and block tables are those of one ``group`` of the KV
    cache; the rest is the same for all. Raises ValueError for a wrong argument.
    """
    _check_packet(rows, packet, 0, table.words)
    check_range("num_rows", num_rows, 1, table.max_num_seqs)
    check_range("group", group, 0, layout.groups - 1)
    _check_buffers(rows, buffers, layout, num_rows)
    run = select("gather_step", rows.device)
    run(rows, packet, buffers, layout, table, num_rows, block_size, group)


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
    """Rebuilds what the penalties of ``num_counted`` rows read from the rows' known tokens.

    Entries lie in the packet from ``counted_at`` on, each (row, number of prompt tokens, number of
    known tokens). A row's output_counts [num_rows, V] int32 become the counts of its generated
    tokens, and its prompt_mask [num_rows, V] bool marks the prompt's, where its record says that
    they are read. Raises ValueError for a wrong argument.
    """
    _check_packet(rows, packet, counted_at, COUNTED_WORDS * num_counted)
    _check_tables(rows, output_counts, prompt_mask)
    if num_counted:
        run = select("count_tokens", rows.device)
        run(rows, packet, output_counts, prompt_mask, layout, counted_at, num_counted)


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
    """Gives each row the token that it chose, as its last known one, and reports it.

    token_ids [S] int64 and non_finite [S] bool are what the sampler answered, in the order of the
    packet's ``sample`` column; ``num_rows`` is the packet's count of rows. A token goes behind its
    row's tokens of this step, and is counted where the row's penalties read counts. results [S]
    int32 get the ids, or -1 for a row that was not finite, which gets no token: what is there
    stays. Raises ValueError for a wrong argument.
    """
    _check_packet(rows, packet, 0, table.words)
    check_range("num_rows", num_rows, 1, table.max_num_seqs)
    check_shape("token_ids", token_ids, (None,))
    check_dtype("token_ids", token_ids, _LONG)
    check_shape("non_finite", non_finite, tuple(token_ids.shape))
    check_dtype("non_finite", non_finite, (torch.bool,))
    check_shape("results", results, tuple(token_ids.shape))
    check_dtype("results", results, _INT)
    check_shape("output_counts", output_counts, (rows.shape[0], None))
    check_dtype("output_counts", output_counts, _INT)
    for name, tensor in (
        ("token_ids", token_ids),
        ("non_finite", non_finite),
        ("results", results),
        ("output_counts", output_counts),
    ):
        check_contiguous(name, tensor)
        check_same_device(**{"rows": rows, name: tensor})
    run = select("commit_tokens", rows.device)
    run(rows, packet, token_ids, non_finite, output_counts, results, layout, table, num_rows)


def _check_packet(rows: Tensor, packet: Tensor, first: int, words: int) -> None:
    for name, tensor, shape in (("rows", rows, (None, None)), ("packet", packet, (None,))):
        check_shape(name, tensor, shape)
        check_dtype(name, tensor, _INT)
        check_contiguous(name, tensor)
    check_same_device(rows=rows, packet=packet)
    if first < 0 or words < 0 or first + words > packet.shape[0]:
        raise ValueError(
            f"packet has {packet.shape[0]} words; words {first} .. {first + words} are asked for"
        )


def _check_buffers(rows: Tensor, buffers: StepBuffers, layout: RowLayout, num_rows: int) -> None:
    """That they fit rows and step; what they are in themselves they have checked."""
    if rows.shape[1] != layout.words or buffers.block_tables.shape[1] != layout.max_blocks:
        raise ValueError(
            f"rows have {rows.shape[1]} words, buffers.block_tables {buffers.block_tables.shape[1]}"
            f" columns; the layout has {layout.words} and {layout.max_blocks}"
        )
    check_same_device(rows=rows, buffers=buffers.token_ids)
    most = min(buffers.seq_lens.shape[0], buffers.token_ids.shape[0])
    check_range("num_rows", num_rows, 1, most)


def _check_tables(rows: Tensor, output_counts: Tensor, prompt_mask: Tensor) -> None:
    check_shape("output_counts", output_counts, (rows.shape[0], None))
    check_dtype("output_counts", output_counts, _INT)
    check_shape("prompt_mask", prompt_mask, tuple(output_counts.shape))
    check_dtype("prompt_mask", prompt_mask, (torch.bool,))
    for name, tensor in (("output_counts", output_counts), ("prompt_mask", prompt_mask)):
        check_contiguous(name, tensor)
    check_same_device(rows=rows, output_counts=output_counts, prompt_mask=prompt_mask)
