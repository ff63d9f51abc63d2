"""Residual addition and normalisation of whole rows, or of each head of a row, in registers."""

import triton
import triton.language as tl

from kernels.jit.rounding import round_to


@triton.jit
def _parameters(ptr, row, columns, WIDTH: tl.constexpr, OWN: tl.constexpr, HEADS: tl.constexpr):
    """Weights or biases of columns, float32 [1, PADDED]; where each head has its own, [ROWS,
    PADDED]."""
    inside = (columns < WIDTH)[None, :]
    if OWN:
        ptrs = ptr + (row % HEADS)[:, None] * WIDTH + columns[None, :]
        return tl.load(ptrs, inside, other=0.0).to(tl.float32)
    else:
        return tl.load(ptr + columns[None, :], inside, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["rows"])
def add_norm(
    x_ptr,  # [rows / HEADS, HEADS, WIDTH], the first x_stride apart
    residual_ptr,  # the same, residual_stride apart
    weight_ptr,  # [WIDTH], or [HEADS, WIDTH] where OWN; where HAS_WEIGHT
    bias_ptr,  # likewise, where HAS_BIAS
    normed_ptr,  # [rows, WIDTH]
    total_ptr,  # [rows, WIDTH]
    rows,
    x_stride,
    residual_stride,
    epsilon,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,  # WIDTH up to a power of two
    ROWS: tl.constexpr,  # rows of one program
    HAS_RESIDUAL: tl.constexpr,
    CENTRED: tl.constexpr,  # LayerNorm, else RMSNorm
    HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    OWN: tl.constexpr,  # each head has its own weights and biases
    HEADS: tl.constexpr,
    OFFSET: tl.constexpr,  # added to the weights
    INTERPRETED: tl.constexpr,
):
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, PADDED)
    inside = (row < rows)[:, None] & (columns < WIDTH)[None, :]
    token, column = (row // HEADS)[:, None], (row % HEADS)[:, None] * WIDTH + columns[None, :]
    values = tl.load(x_ptr + token * x_stride + column, inside, other=0.0)
    values = values.to(tl.float32)  # [ROWS, PADDED]
    out = row[:, None] * WIDTH + columns[None, :]
    if HAS_RESIDUAL:
        added = tl.load(residual_ptr + token * residual_stride + column, inside, other=0.0)
        total = round_to(values + added.to(tl.float32), dtype, INTERPRETED)
        tl.store(total_ptr + out, total, inside)
        values = total.to(tl.float32)  # what is normalised is what the next layer adds to
    if HAS_WEIGHT:
        weight = _parameters(weight_ptr, row, columns, WIDTH, OWN, HEADS)
        if OFFSET != 0.0:
            weight += OFFSET
    if CENTRED:
        mean = tl.sum(values, axis=1) / WIDTH
        values = tl.where(inside, values - mean[:, None], 0.0)
    variance = tl.sum(values * values, axis=1) / WIDTH
    normed = values * (1.0 / tl.sqrt_rn(variance + epsilon))[:, None]
    if HAS_WEIGHT:
        normed *= weight
    if HAS_BIAS:
        normed += _parameters(bias_ptr, row, columns, WIDTH, OWN, HEADS)
    tl.store(normed_ptr + out, round_to(normed, dtype, INTERPRETED), inside)
