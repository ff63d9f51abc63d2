"""The plain data of the operations: what attention, sampling and a step's inputs are given."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.checks import check_contiguous, check_dtype, check_same_device, check_shape
from kernels.footprint.row_state import NUM_FLOATS


@dataclass(frozen=True, slots=True)
class HeadNorms:
    """RMS norms of each head of queries and of keys, as rotary_store_kv applies them."""

    query: Tensor  # [hd]
    key: Tensor  # [hd]
    epsilon: float
    weight_offset: float = 0.0
    after_turn: bool = False


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
    ceil(seq_len / block_size) are never read, nor, by attention with a window, those behind the
    window of the row's first token.
    """

    query_start_loc: Tensor  # [B + 1] int32
    seq_lens: Tensor  # [B] int32
    block_tables: Tensor  # [B, max_blocks] int32
    slot_mapping: Tensor  # [T] int64
    positions: Tensor  # [T] int64
    max_query_len: int
    max_seq_len: int
    work: object  # the backend's own work list


@dataclass(frozen=True, slots=True)
class SparseBias:
    """Values added to single logits: ``logits[rows[i], ids[i]] += values[i]``.

    ``rows`` and ``ids`` are int64 [N], ``values`` float32 [N]; a pair occurs at most once.
    """

    rows: Tensor
    ids: Tensor
    values: Tensor


@dataclass(frozen=True, slots=True)
class SparseIds:
    """Single tokens that a row may not choose: ``rows`` and ``ids`` are int64 [N]."""

    rows: Tensor
    ids: Tensor


@dataclass(frozen=True, slots=True)
class SamplingTensors:
    """Sampling parameters of R rows. Every tensor but the sparse ones has R rows.

    None means that no row uses the feature; a row that does not holds the neutral value. Greedy
    rows (temperature 0) read neither key nor position, so a batch without extras needs
    ``temperature`` alone.

    ``key`` holds the bits of an unsigned 64-bit key (kernels.derive_key) in an int64.
    ``position`` is the output position: 0 for a sequence's first generated token.
    ``output_counts`` counts generated tokens only; ``prompt_mask`` marks the prompt's tokens.
    """

    temperature: Tensor  # [R] float32, >= 0; 0 is greedy
    top_k: Tensor | None = None  # [R] int32 or int64; 0 or less is off
    top_p: Tensor | None = None  # [R] float32 in (0, 1]; 1 is off
    min_p: Tensor | None = None  # [R] float32 in [0, 1]; 0 is off
    presence: Tensor | None = None  # [R] float32; 0 is off. Needs output_counts
    frequency: Tensor | None = None  # [R] float32; 0 is off. Needs output_counts
    repetition: Tensor | None = None  # [R] float32 > 0; 1 is off. Needs both of the next two
    output_counts: Tensor | None = None  # [R, V] int32
    prompt_mask: Tensor | None = None  # [R, V] bool
    key: Tensor | None = None  # [R] int64. Needed when a temperature is above 0
    position: Tensor | None = None  # [R] int64. Needed when a temperature is above 0
    bias: SparseBias | None = None
    forbidden: SparseIds | None = None
    bitmask: Tensor | None = None  # [R, ceil(V / 32)] int32; bit v % 32 of word v // 32 allows v


@dataclass(frozen=True, slots=True)
class SampleOutput:
    """``token_ids`` [R] int64; ``non_finite`` [R] bool, whose rows hold token id 0."""

    token_ids: Tensor
    non_finite: Tensor


_INT = (torch.int32,)
_LONG = (torch.int64,)


@dataclass(frozen=True, slots=True)
class StepBuffers:
    """What gather_step fills, for up to R rows and T tokens. Persistent: a captured graph of CUDA
    work reads and writes these very addresses. Checked once, here: raises ValueError for a wrong
    one."""

    token_ids: Tensor  # [T] int64
    positions: Tensor  # [T] int64
    slot_mapping: Tensor  # [T] int64
    query_start_loc: Tensor  # [R + 1] int32
    seq_lens: Tensor  # [R] int32
    block_tables: Tensor  # [R, max_blocks] int32
    floats: Tensor  # [6, at least R] float32, in the order of row_state.FLOATS_AT
    top_k: Tensor  # [R] int64
    keys: Tensor  # [R] int64
    output_positions: Tensor  # [R] int64

    def __post_init__(self) -> None:
        tokens = tuple(self.token_ids.shape)
        for name, dtypes, shape in (
            ("token_ids", _LONG, (None,)),
            ("positions", _LONG, tokens),
            ("slot_mapping", _LONG, tokens),
            ("query_start_loc", _INT, (None,)),
            ("seq_lens", _INT, (None,)),
            ("block_tables", _INT, (None, None)),
            ("floats", (torch.float32,), (NUM_FLOATS, None)),
            ("top_k", _LONG, (None,)),
            ("keys", _LONG, (None,)),
            ("output_positions", _LONG, (None,)),
        ):
            tensor: Tensor = getattr(self, name)
            check_shape(f"buffers.{name}", tensor, shape)
            check_dtype(f"buffers.{name}", tensor, dtypes)
            check_contiguous(f"buffers.{name}", tensor)
            check_same_device(token_ids=self.token_ids, **{f"buffers.{name}": tensor})
