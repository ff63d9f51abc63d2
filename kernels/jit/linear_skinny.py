"""Products of a few rows with a packed weight: the weight streams by once and is all the work.

Two bodies. One or two rows: multiplied and added up by ordinary arithmetic, a program for a few
output channels over all input channels. More rows (and int4, for any number): the weight
[BLOCK_N, BLOCK_K] is the left side of tl.dot and the rows are its narrow right side, so that rows
are padded to 8, 16 or 32 only, and every number is converted once.
"""

import triton
import triton.language as tl

from kernels.jit.linear_parts import finished, nibbles, scale_pairs, widened


@triton.jit
def linear_reduce(
    x,  # [ROWS, in_features]
    weight,  # [out_features, in_features]
    scales,  # [out_features] float32, where FORMAT has them
    bias,  # [out_features]
    residual,  # [ROWS, out_features]
    out,  # [ROWS, out_features]
    out_features,
    in_features,
    ROWS: tl.constexpr,  # 1 or 2
    FORMAT: tl.constexpr,  # plain, int8, fp8, fp8_bits
    ACTIVATION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    WHOLE_TILES: tl.constexpr,  # in_features is a multiple of BLOCK_K
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Sums stay apart by place in the tile of input channels until the loop ends: their order is
    fixed by BLOCK_K, and nothing crosses threads inside the loop."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)[None, :]
    # The last program reads the last channel again instead of masking; it stores it once.
    channels = weight + tl.minimum(n, out_features - 1).to(tl.int64)[:, None] * in_features
    # Addressed like the weight, so that a thread loads the inputs of its own weights.
    given = x + tl.zeros([BLOCK_N, BLOCK_K], tl.int32)
    first = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    second = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    for start in range(0, in_features, BLOCK_K):
        at = start + k
        if WHOLE_TILES:
            raw = tl.load(channels + at, eviction_policy="evict_first")
            numbers = widened(raw, FORMAT, tl.float32, INTERPRETED)
            first += numbers * tl.load(given + at).to(tl.float32)
            if ROWS == 2:
                second += numbers * tl.load(given + in_features + at).to(tl.float32)
        else:
            inside = (at < in_features) & (n[:, None] >= 0)
            raw = tl.load(channels + at, mask=inside, other=0.0, eviction_policy="evict_first")
            numbers = widened(raw, FORMAT, tl.float32, INTERPRETED)
            first += numbers * tl.load(given + at, mask=inside, other=0.0).to(tl.float32)
            if ROWS == 2:
                row = tl.load(given + in_features + at, mask=inside, other=0.0)
                second += numbers * row.to(tl.float32)
    kept = n < out_features
    for index in tl.static_range(ROWS):
        total = tl.sum(first if index == 0 else second, axis=1)
        if FORMAT != "plain":
            total *= tl.load(scales + n, mask=kept, other=0.0)
        to = index * out_features + n
        total = finished(
            total, n, to, kept, bias, residual, out_features, HAS_BIAS, HAS_RESIDUAL, ACTIVATION
        )
        tl.store(out + to, total.to(out.dtype.element_ty), mask=kept)


@triton.jit(do_not_specialize=["rows"], do_not_specialize_on_alignment=["rows"])
def linear_dot(
    x,  # [rows, in_features]
    weight,  # [out_features, in_features]; int4: [tiles, out_features, GROUP] bytes
    scales,  # [out_features] float32; int4: [tiles, out_features], two bfloat16 in an int32
    bias,  # [out_features]
    residual,  # [rows, out_features]
    out,  # [rows, out_features]; SPLITS > 1: partial sums [SPLITS, rows, out_features] float32
    rows,  # at most BLOCK_M
    out_features,
    in_features,
    FORMAT: tl.constexpr,  # plain, int8, fp8, fp8_bits, int4
    GROUP: tl.constexpr,  # of int4
    ACTIVATION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    WHOLE_TILES: tl.constexpr,  # in_features is a multiple of BLOCK_K
    SPLITS: tl.constexpr,  # programs that share the input channels of an output channel
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,  # int4: 2 * GROUP
    STAGES: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Each split takes an equal run of whole tiles; linear_finish adds the runs up in order.

    int4: each half of a tile is one group, whose sum of whole numbers is scaled in float32.
    """
    DTYPE: tl.constexpr = tl.float32 if INTERPRETED else x.dtype.element_ty
    PRECISION: tl.constexpr = "ieee" if tl.float32 == DTYPE else "tf32"
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.arange(0, BLOCK_M)[None, :]
    split = tl.program_id(1)
    n_safe = tl.minimum(n, out_features - 1)  # reads the last channel again instead of masking
    channels = weight + n_safe.to(tl.int64)[:, None] * (GROUP if FORMAT == "int4" else in_features)
    x_rows = x + m * in_features
    tiles = tl.cdiv(in_features, BLOCK_K)
    run = tl.cdiv(tiles, SPLITS)
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for tile in tl.range(split * run, tl.minimum((split + 1) * run, tiles), num_stages=STAGES):
        if FORMAT == "int4":
            j = tl.arange(0, GROUP)
            at = tl.cast(tile, tl.int64) * out_features * GROUP
            packed = tl.load(channels + at + j[None, :], eviction_policy="evict_first")
            low_k = tile * BLOCK_K + j[:, None]
            high_k = low_k + GROUP
            if WHOLE_TILES:
                low_x = tl.load(x_rows + low_k, mask=m < rows, other=0.0)
                high_x = tl.load(x_rows + high_k, mask=m < rows, other=0.0)
            else:
                low_x = tl.load(x_rows + low_k, mask=(m < rows) & (low_k < in_features), other=0.0)
                high_x = tl.load(
                    x_rows + high_k, mask=(m < rows) & (high_k < in_features), other=0.0
                )
            low_scales, high_scales = scale_pairs(tl.load(scales + tile * out_features + n_safe))
            low, high = nibbles(packed, DTYPE, INTERPRETED)
            low_sums = tl.dot(low, low_x.to(DTYPE), input_precision=PRECISION)
            acc += low_sums * low_scales[:, None]
            high_sums = tl.dot(high, high_x.to(DTYPE), input_precision=PRECISION)
            acc += high_sums * high_scales[:, None]
        else:
            k = tile * BLOCK_K + tl.arange(0, BLOCK_K)
            if WHOLE_TILES:
                raw = tl.load(channels + k[None, :], eviction_policy="evict_first")
                given = tl.load(x_rows + k[:, None], mask=m < rows, other=0.0)
            else:
                inside = k < in_features
                raw = tl.load(
                    channels + k[None, :],
                    mask=inside[None, :],
                    other=0.0,
                    eviction_policy="evict_first",
                )
                given = tl.load(x_rows + k[:, None], mask=inside[:, None] & (m < rows), other=0.0)
            numbers = widened(raw, FORMAT, DTYPE, INTERPRETED)
            acc = tl.dot(numbers, given.to(DTYPE), acc, input_precision=PRECISION)
    n = n[:, None]
    kept = (n < out_features) & (m < rows)
    if FORMAT != "plain" and FORMAT != "int4":
        acc *= tl.load(scales + n_safe)[:, None]
    to = m * out_features + n
    if SPLITS == 1:
        acc = finished(
            acc, n, to, kept, bias, residual, out_features, HAS_BIAS, HAS_RESIDUAL, ACTIVATION
        )
        tl.store(out + to, acc.to(out.dtype.element_ty), mask=kept)
    else:
        tl.store(out + split * rows * out_features + to, acc, mask=kept)


@triton.jit(
    do_not_specialize=["elements"],
    do_not_specialize_on_alignment=["elements"],
)
def linear_finish(
    parts,  # [SPLITS, elements]
    bias,  # [out_features]
    residual,  # [elements]
    out,  # [elements], elements = rows x out_features; may be parts, where SPLITS is 1
    elements,
    out_features,
    SPLITS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Adds partial products up in the order of their input channels; then the epilogue."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    kept = at < elements
    total = tl.load(parts + at, mask=kept, other=0.0).to(tl.float32)
    for split in tl.static_range(1, SPLITS):
        total += tl.load(parts + split * elements + at, mask=kept, other=0.0).to(tl.float32)
    total = finished(
        total,
        at % out_features,
        at,
        kept,
        bias,
        residual,
        out_features,
        HAS_BIAS,
        HAS_RESIDUAL,
        ACTIVATION,
    )
    tl.store(out + at, total.to(out.dtype.element_ty), mask=kept)
