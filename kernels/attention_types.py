"""The one metadata form of attention."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class AttentionFeatures:
    """What some families do to attention's scores; the defaults are plain attention.

    The score of query position i and key position j is ``scale * q.k``, then in this order:
    ``soft_cap * tanh(score / soft_cap)``, plus ``alibi_slopes[head] * (j - i)``; keys with
    ``j <= i - window`` are not seen. ``sinks`` are logits of one more key per head that takes
    weight and has no value.
    """

    window: int = 0  # keys that a query sees, itself included; 0 is all
    soft_cap: float = 0.0  # 0 is none
    alibi_slopes: Tensor | None = None  # [Hq] float32
    sinks: Tensor | None = None  # [Hq] float32

    @property
    def is_plain(self) -> bool:
        unused = self.alibi_slopes is None and self.sinks is None
        return unused and self.window == 0 and self.soft_cap == 0.0


PLAIN = AttentionFeatures()


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
