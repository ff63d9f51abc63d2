"""Rows and step inputs on a GPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from kernels import tuning
from kernels.footprint import row_state
from kernels.footprint.row_state import RowLayout, StepTable
from kernels.gpu.compile_case import CompileCase
from kernels.jit import step_inputs as jit
from kernels.types import StepBuffers

PAGES = (16, 32, 64, 128)


def _tuned(kernel: str, tensor: Tensor) -> tuning.Tuning:
    return tuning.lookup(kernel, tuning.architecture(tensor.device))


def write_rows(rows: Tensor, packet: Tensor, segments_at: int, num_segments: int) -> None:
    tuned = _tuned("write_rows", rows)
    jit.write_rows_kernel[(num_segments,)](
        rows,
        packet,
        segments_at,
        rows.shape[1],
        BLOCK=tuned.blocks["BLOCK"],
        **tuned.launch,
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
    tuned = _tuned("gather_step", rows)
    jit.step_inputs_kernel[(num_rows,)](
        rows,
        packet,
        buffers.token_ids,
        buffers.positions,
        buffers.slot_mapping,
        buffers.query_start_loc,
        buffers.seq_lens,
        buffers.block_tables,
        buffers.floats,
        buffers.top_k,
        buffers.keys,
        buffers.output_positions,
        rows.shape[1],
        layout.tokens_at,
        table.rows_at,
        table.starts_at,
        table.computed_at,
        table.samples_at,
        table.outputs_at,
        buffers.block_tables.shape[1],
        buffers.floats.shape[1],
        **_gather_constants(block_size, tuned, layout.table_at(group)),
        **tuned.launch,
    )


def count_tokens(
    rows: Tensor,
    packet: Tensor,
    output_counts: Tensor,
    prompt_mask: Tensor,
    layout: RowLayout,
    counted_at: int,
    num_counted: int,
) -> None:
    tuned = _tuned("count_tokens", rows)
    jit.count_tokens_kernel[(num_counted,)](
        rows,
        packet,
        output_counts,
        prompt_mask.view(torch.uint8),
        counted_at,
        rows.shape[1],
        layout.tokens_at,
        output_counts.shape[1],
        **_COUNT_CONSTANTS,
        BLOCK=tuned.blocks["BLOCK"],
        **tuned.launch,
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
    tuned = _tuned("commit_tokens", rows)
    jit.commit_tokens_kernel[(num_rows,)](
        rows,
        packet,
        token_ids,
        non_finite.view(torch.uint8),
        output_counts,
        results,
        rows.shape[1],
        layout.tokens_at,
        layout.max_tokens,
        output_counts.shape[1],
        table.rows_at,
        table.starts_at,
        table.computed_at,
        table.samples_at,
        **_COMMIT_CONSTANTS,
        **tuned.launch,
    )


_COUNT_CONSTANTS = {
    "COUNTED_WORDS": row_state.COUNTED_WORDS,
    "COUNTS": row_state.COUNTS,
    "COUNTS_PROMPT": row_state.COUNTS_PROMPT,
}
_COMMIT_CONSTANTS = {"COUNTS": row_state.COUNTS, "COUNTS_OUTPUT": row_state.COUNTS_OUTPUT}


def _gather_constants(
    block_size: int, tuned: tuning.Tuning, table_at: int = row_state.TABLE_AT
) -> dict[str, int]:
    return {
        "TABLE_AT": table_at,
        "TOP_K": row_state.TOP_K,
        "KEY_LOW": row_state.KEY_LOW,
        "FLOATS_AT": row_state.FLOATS_AT,
        "NUM_FLOATS": row_state.NUM_FLOATS,
        "PAGE": block_size,
        "BLOCK": tuned.blocks["BLOCK"],
    }


def compile_cases(arch: int) -> Iterator[CompileCase]:
    block = tuning.lookup("write_rows", arch).blocks["BLOCK"]
    yield _case(arch, "write_rows", jit.write_rows_kernel, _WRITE, {"BLOCK": block})
    tuned = tuning.lookup("gather_step", arch)
    for page in PAGES:
        constants = _gather_constants(page, tuned)
        yield _case(arch, "gather_step", jit.step_inputs_kernel, _GATHER, constants, f"page{page}")
    block = tuning.lookup("count_tokens", arch).blocks["BLOCK"]
    constants = {**_COUNT_CONSTANTS, "BLOCK": block}
    yield _case(arch, "count_tokens", jit.count_tokens_kernel, _COUNT, constants)
    yield _case(arch, "commit_tokens", jit.commit_tokens_kernel, _COMMIT, _COMMIT_CONSTANTS)


def _integers(*names: str) -> dict[str, str]:
    return dict.fromkeys(names, "i32")


_ROWS = {"rows": "*i32", "packet": "*i32"}
_WRITE = _ROWS | _integers("segments_at", "row_words")
_GATHER = (
    _ROWS
    | dict.fromkeys(("token_ids", "positions", "slot_mapping"), "*i64")
    | dict.fromkeys(("query_start_loc", "seq_lens", "block_tables"), "*i32")
    | {"floats": "*fp32", "top_k": "*i64", "keys": "*i64", "output_positions": "*i64"}
    | _integers("row_words", "tokens_at", "rows_at", "starts_at", "computed_at", "samples_at")
    | _integers("outputs_at", "table_stride", "float_stride")
)
_COUNT = (
    _ROWS
    | {"output_counts": "*i32", "prompt_mask": "*u8"}
    | _integers("counted_at", "row_words", "tokens_at", "vocab_size")
)
_COMMIT = (
    _ROWS
    | {"token_ids": "*i64", "non_finite": "*u8", "output_counts": "*i32", "results": "*i32"}
    | _integers("row_words", "tokens_at", "max_tokens", "vocab_size")
    | _integers("rows_at", "starts_at", "computed_at", "samples_at")
)


def _case(
    arch: int,
    kernel: str,
    fn: Any,
    signature: Mapping[str, str],
    constants: Mapping[str, int],
    what: str = "all",
) -> CompileCase:
    tuned = tuning.lookup(kernel, arch)
    return CompileCase(
        name=f"{kernel}/{what}",
        fn=fn,
        signature=signature,
        constexprs=constants,
        num_warps=tuned.num_warps,
        num_stages=tuned.num_stages,
        aligned=frozenset(name for name, kind in signature.items() if kind.startswith("*")),
    )
