"""Step inputs from rows' records, and chosen tokens back into them, native."""

from __future__ import annotations

from torch import Tensor

from kernels.cpu.native import structs
from kernels.cpu.native.program import address, of_tokens, run_alone
from kernels.footprint.row_state import RowLayout, StepTable
from kernels.types import StepBuffers


def gather_call(
    rows: Tensor,
    buffers: StepBuffers,
    layout: RowLayout,
    table: StepTable,
    block_size: int,
    group: int = 0,
) -> structs.GatherStep:
    """Of any packet, which it is given with the number of rows."""
    return structs.GatherStep(
        table=_columns(table),
        records=address(rows),
        words=layout.words,
        token_ids=address(buffers.token_ids),
        positions=address(buffers.positions),
        slot_mapping=address(buffers.slot_mapping),
        query_start_loc=address(buffers.query_start_loc),
        seq_lens=address(buffers.seq_lens),
        block_tables=address(buffers.block_tables),
        floats=address(buffers.floats),
        top_k=address(buffers.top_k),
        keys=address(buffers.keys),
        output_positions=address(buffers.output_positions),
        max_blocks=layout.max_blocks,
        floats_stride=buffers.floats.shape[1],
        table_at=layout.table_at(group),
        tokens_at=layout.tokens_at,
        block_size=block_size,
    )


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
    """As kernels.gather_step."""
    call = gather_call(rows, buffers, layout, table, block_size, group)
    call.table.packet, call.num_rows = address(packet), num_rows
    run_alone(call, of_tokens(0))


def commit_call(
    rows: Tensor, output_counts: Tensor, layout: RowLayout, table: StepTable
) -> structs.CommitTokens:
    """Of any packet, which it is given with the number of rows, the tokens and where the results
    go."""
    return structs.CommitTokens(
        table=_columns(table),
        records=address(rows),
        words=layout.words,
        output_counts=address(output_counts),
        vocab=output_counts.shape[1],
        max_tokens=layout.max_tokens,
        tokens_at=layout.tokens_at,
    )


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
    """As kernels.commit_tokens."""
    call = commit_call(rows, output_counts, layout, table)
    call.table.packet, call.num_rows = address(packet), num_rows
    call.token_ids, call.non_finite = address(token_ids), address(non_finite)
    call.results = address(results)
    run_alone(call, of_tokens(token_ids.shape[0]))


def _columns(table: StepTable) -> structs.StepTable:
    return structs.StepTable(
        None,
        table.rows_at,
        table.starts_at,
        table.computed_at,
        table.samples_at,
        table.outputs_at,
    )
