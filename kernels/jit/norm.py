"""Residual addition and normalisation of whole rows, in registers."""

import triton
import triton.language as tl

from kernels.jit.rounding import round_to


@triton.jit(do_not_specialize=["rows"])
def add_norm(
    x_ptr,  # [rows, WIDTH], rows x_stride apart
    residual_ptr,  # [rows, WIDTH], rows residual_stride apart
    weight_ptr,  # [WIDTH], where HAS_WEIGHT
    bias_ptr,  # [WIDTH], where HAS_BIAS
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
    OFFSET: tl.constexpr,  # added to the weights
    INTERPRETED: tl.constexpr,
):
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, PADDED)
    inside = (row < rows)[:, None] & (columns < WIDTH)[None, :]
    values = tl.load(x_ptr + row[:, None] * x_stride + columns[None, :], inside, other=0.0)
    values = values.to(tl.float32)  # [ROWS, PADDED]
    out = row[:, None] * WIDTH + columns[None, :]
    if HAS_RESIDUAL:
        added = tl.load(
            residual_ptr + row[:, None] * residual_stride + columns[None, :], inside, other=0.0
        )
        total = round_to(values + added.to(tl.float32), dtype, INTERPRETED)
        tl.store(total_ptr + out, total, inside)
        values = total.to(tl.float32)  # what is normalised is what the next layer adds to
    if HAS_WEIGHT:
        weight = tl.load(weight_ptr + columns, columns < WIDTH, other=0.0).to(tl.float32)
        if OFFSET != 0.0:
            weight += OFFSET
    if CENTRED:
        mean = tl.sum(values, axis=1) / WIDTH
        values = tl.where(inside, values - mean[:, None], 0.0)
    variance = tl.sum(values * values, axis=1) / WIDTH
    normed = values * (1.0 / tl.sqrt_rn(variance + epsilon))[:, None]
    if HAS_WEIGHT:
        normed *= weight[None, :]
    if HAS_BIAS:
        normed += tl.load(bias_ptr + columns, columns < WIDTH, other=0.0).to(tl.float32)[None, :]
    tl.store(normed_ptr + out, round_to(normed, dtype, INTERPRETED), inside)
