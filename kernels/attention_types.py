"""The one metadata form of attention."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class AttentionMetadata:
    """One step's rows and tokens, made once by prepare_attention and shared by all layers.

    The T tokens of a step lie one row after the other: row b owns tokens
    ``query_start_loc[b] : query_start_loc[b + 1]``, the last ones of its context. ``seq_lens``
    count the whole context, this step's tokens included. Entries of ``block_tables`` past
    ceil(seq_len / block_size) are never read.
    """

    query_start_loc: Tensor  # [B + 1] int32
    seq_lens: Tensor  # [B] int32
    block_tables: Tensor  # [B, max_blocks] int32
    slot_mapping: Tensor  # [T] int64
    positions: Tensor  # [T] int64
    max_query_len: int
    max_seq_len: int
    work: object  # the backend's own work list
