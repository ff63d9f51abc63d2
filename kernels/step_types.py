"""The buffers that a step's inputs are gathered into."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class StepBuffers:
    """What gather_step fills, for up to R rows and T tokens. Persistent: a captured graph of CUDA
    work reads and writes these very addresses."""

    token_ids: Tensor  # [T] int64
    positions: Tensor  # [T] int64
    slot_mapping: Tensor  # [T] int64
    query_start_loc: Tensor  # [R + 1] int32
    seq_lens: Tensor  # [R] int32
    block_tables: Tensor  # [R, max_blocks] int32
    floats: Tensor  # [6, R] float32, in the order of row_state.FLOATS_AT
    top_k: Tensor  # [R] int64
    keys: Tensor  # [R] int64
    output_positions: Tensor  # [R] int64
