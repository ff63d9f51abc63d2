"""What a sampler is told about each row, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


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
