"""Products of many rows with a packed weight, and the dequantising of one.

The weight [BLOCK_N, BLOCK_K] is the left side of tl.dot: numbers of 8 and 4 bits are widened in
registers, where Hopper's and Ampere's tensor cores take a left side from, and never exist as 16-bit
floats anywhere else. The order of additions over the input channels depends on BLOCK_K and on
nothing else: not on the number of rows, nor on a row's place among them.
"""

import triton
import triton.language as tl

from kernels.jit.linear_parts import finished, nibbles, scale_pairs, widened


@triton.jit
def scaled(numbers, scale, DTYPE: tl.constexpr):
    """numbers [BLOCK_N, .] times float32 scale [BLOCK_N], rounded once to DTYPE."""
    if tl.bfloat16 == DTYPE:
        return numbers * scale.to(tl.bfloat16)[:, None]  # scales are bfloat16 by their format
    else:
        return (numbers.to(tl.float32) * scale[:, None]).to(DTYPE)


@triton.jit(do_not_specialize=["rows"], do_not_specialize_on_alignment=["rows"])
def linear_tiled(
    x,  # [rows, in_features]
    weight,  # [out_features, in_features]; int4: [tiles, out_features, GROUP] bytes
    scales,  # [out_features] float32; int4: [tiles, out_features], two bfloat16 in an int32
    bias,  # [out_features]
    residual,  # [rows, out_features]
    out,  # [rows, out_features]
    rows,
    out_features,
    in_features,
    FORMAT: tl.constexpr,  # plain, int8, fp8, fp8_bits, int4
    GROUP: tl.constexpr,  # of int4
    ACTIVATION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    WHOLE_TILES: tl.constexpr,  # in_features is a multiple of BLOCK_K
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,  # int4: 2 * GROUP
    BAND: tl.constexpr,  # tiles of output channels that are worked on together, for the L2 cache
    STAGES: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    DTYPE: tl.constexpr = tl.float32 if INTERPRETED else x.dtype.element_ty
    PRECISION: tl.constexpr = "ieee" if tl.float32 == DTYPE else "tf32"
    row_tiles = tl.cdiv(rows, BLOCK_M)
    channel_tiles = tl.cdiv(out_features, BLOCK_N)
    band = tl.program_id(0) // (BAND * row_tiles)
    place = tl.program_id(0) % (BAND * row_tiles)
    width = tl.minimum(channel_tiles - band * BAND, BAND)
    n = (band * BAND + place % width) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = (place // width) * BLOCK_M + tl.arange(0, BLOCK_M)
    # Past the end the last channel and the last row are read again instead of masked.
    n_safe = tl.minimum(n, out_features - 1)
    channels = weight + n_safe.to(tl.int64)[:, None] * (GROUP if FORMAT == "int4" else in_features)
    x_rows = x + tl.minimum(m, rows - 1).to(tl.int64)[None, :] * in_features
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for tile in tl.range(0, tl.cdiv(in_features, BLOCK_K), num_stages=STAGES):
        if FORMAT == "int4":
            j = tl.arange(0, GROUP)
            at = tl.cast(tile, tl.int64) * out_features * GROUP
            packed = tl.load(channels + at + j[None, :])
            low_k = tile * BLOCK_K + j[:, None]
            high_k = low_k + GROUP
            if WHOLE_TILES:
                low_x = tl.load(x_rows + low_k)
                high_x = tl.load(x_rows + high_k)
            else:
                low_x = tl.load(x_rows + low_k, mask=low_k < in_features, other=0.0)
                high_x = tl.load(x_rows + high_k, mask=high_k < in_features, other=0.0)
            low_scales, high_scales = scale_pairs(tl.load(scales + tile * out_features + n_safe))
            low, high = nibbles(packed, DTYPE, INTERPRETED)
            low = scaled(low, low_scales, DTYPE)
            high = scaled(high, high_scales, DTYPE)
            acc = tl.dot(low, low_x.to(DTYPE), acc, input_precision=PRECISION)
            acc = tl.dot(high, high_x.to(DTYPE), acc, input_precision=PRECISION)
        else:
            k = tile * BLOCK_K + tl.arange(0, BLOCK_K)
            if WHOLE_TILES:
                raw = tl.load(channels + k[None, :])
                given = tl.load(x_rows + k[:, None])
            else:
                inside = k < in_features
                raw = tl.load(channels + k[None, :], mask=inside[None, :], other=0.0)
                given = tl.load(x_rows + k[:, None], mask=inside[:, None], other=0.0)
            numbers = widened(raw, FORMAT, DTYPE, INTERPRETED)
            acc = tl.dot(numbers, given.to(DTYPE), acc, input_precision=PRECISION)
    if FORMAT != "plain" and FORMAT != "int4":
        acc *= tl.load(scales + n_safe)[:, None]
    n, m = n[None, :], m[:, None]
    to = m.to(tl.int64) * out_features + n
    kept = (m < rows) & (n < out_features)
    acc = finished(
        tl.trans(acc),
        n,
        to,
        kept,
        bias,
        residual,
        out_features,
        HAS_BIAS,
        HAS_RESIDUAL,
        ACTIVATION,
    )
    tl.store(out + to, acc.to(out.dtype.element_ty), mask=kept)


@triton.jit(do_not_specialize=["first", "panel_rows"])
def linear_dequantise(
    weight,  # as linear_tiled
    scales,
    panel,  # [panel_rows, in_features]: output channels from first on
    first,
    panel_rows,
    out_features,
    in_features,
    FORMAT: tl.constexpr,  # int8, fp8, fp8_bits, int4
    GROUP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,  # int4: 2 * GROUP
    INTERPRETED: tl.constexpr,
):
    """The values of a run of output channels, each rounded once to the panel's dtype."""
    DTYPE: tl.constexpr = panel.dtype.element_ty
    tile = tl.program_id(1)
    row = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N))[:, None]
    n = tl.minimum(first + row, out_features - 1)
    to = panel + row.to(tl.int64) * in_features
    if FORMAT == "int4":
        j = tl.arange(0, GROUP)[None, :]
        packed = tl.load(weight + (tl.cast(tile, tl.int64) * out_features + n) * GROUP + j)
        low, high = nibbles(packed, tl.float32, INTERPRETED)
        low_scales, high_scales = scale_pairs(tl.load(scales + tile * out_features + n))
        k = tile * BLOCK_K + j
        kept = (row < panel_rows) & (k < in_features)
        tl.store(to + k, (low * low_scales).to(DTYPE), mask=kept)
        k += GROUP
        kept = (row < panel_rows) & (k < in_features)
        tl.store(to + k, (high * high_scales).to(DTYPE), mask=kept)
    else:
        k = tile * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]
        kept = (row < panel_rows) & (k < in_features)
        raw = tl.load(weight + n.to(tl.int64) * in_features + k, mask=k < in_features)
        values = widened(raw, FORMAT, tl.float32, INTERPRETED) * tl.load(scales + n)
        tl.store(to + k, values.to(DTYPE), mask=kept)
