"""Norm, turn (in either order) and store: what a step's new queries, keys and values go through, in
one launch.

A program takes HEADS heads of TOKENS tokens, all of them queries, keys or values: its rows. The
channels of a head are read in up to three parts, each a tile of [rows, channels]:

    halves:       | first of each pair | second of each pair | not turned |
    interleaved:  | first, second, first, second, ...        | not turned |

so that both channels of a pair are in the same place of two tiles, every access is contiguous, and
no channel count has to be a power of two.
"""

import triton
import triton.language as tl

from kernels.jit.rounding import float8_bits, nearest_integer, round_to


@triton.jit
def _part(CHANNELS: tl.constexpr, PADDED: tl.constexpr, live):
    """Channel numbers [PADDED], and which of [rows, PADDED] exist."""
    channels = tl.arange(0, PADDED)
    return channels, live[:, None] & (channels < CHANNELS)[None, :]


@triton.jit
def _load_pairs(start, live, TURNED: tl.constexpr, PAIRS: tl.constexpr, INTERLEAVED: tl.constexpr):
    """First and second of each pair, [rows, PAIRS]; ``start`` [rows] points at channel 0."""
    if INTERLEAVED:
        channels, inside = _part(TURNED, 2 * PAIRS, live)
        both = tl.load(start[:, None] + channels[None, :], inside, other=0.0)
        return tl.split(tl.reshape(both, [start.shape[0], PAIRS, 2]))
    else:
        channels, inside = _part(TURNED // 2, PAIRS, live)
        first = start[:, None] + channels[None, :]
        return tl.load(first, inside, other=0.0), tl.load(first + TURNED // 2, inside, other=0.0)


@triton.jit
def _store_pairs(
    start,
    first,
    second,
    live,
    TURNED: tl.constexpr,
    PAIRS: tl.constexpr,
    INTERLEAVED: tl.constexpr,
):
    if INTERLEAVED:
        channels, inside = _part(TURNED, 2 * PAIRS, live)
        both = tl.reshape(tl.join(first, second), [start.shape[0], 2 * PAIRS])
        tl.store(start[:, None] + channels[None, :], both, inside)
    else:
        channels, inside = _part(TURNED // 2, PAIRS, live)
        pointers = start[:, None] + channels[None, :]
        tl.store(pointers, first, inside)
        tl.store(pointers + TURNED // 2, second, inside)


@triton.jit
def _load_rest(start, live, TURNED: tl.constexpr, REST: tl.constexpr, PADDED: tl.constexpr):
    """The channels that do not turn, [rows, PADDED]."""
    channels, inside = _part(REST, PADDED, live)
    return tl.load(start[:, None] + TURNED + channels[None, :], inside, other=0.0)


@triton.jit
def _store_rest(start, rest, live, TURNED: tl.constexpr, REST: tl.constexpr, PADDED: tl.constexpr):
    channels, inside = _part(REST, PADDED, live)
    tl.store(start[:, None] + TURNED + channels[None, :], rest, inside)


@triton.jit
def _largest_bits(values):
    """The bits of the largest absolute value of each row of float32 [rows, channels].

    As integers the bits are in the order of the sizes, and NaN is above all of them: a maximum of
    floats would pass over it, and hide from whoever reads the cache that a number is none.
    """
    return tl.max(tl.abs(values).to(tl.int32, bitcast=True), axis=1)


@triton.jit
def _numbers(values, scales, LARGEST: tl.constexpr):
    """float32 [rows, channels] over ``scales`` [rows], as bytes of the cache's format."""
    numbers = tl.div_rn(values, scales[:, None] + tl.zeros_like(values))
    numbers = tl.clamp(numbers, -LARGEST, LARGEST, propagate_nan=tl.PropagateNan.ALL)
    if LARGEST == 127.0:
        numbers = tl.where(numbers == numbers, numbers, 0.0)  # the scale alone is NaN
        return nearest_integer(numbers).to(tl.int8)
    else:
        return float8_bits(numbers)


@triton.jit
def _factor(weight, OFFSET: tl.constexpr):
    """What a norm multiplies by, float32."""
    weight = weight.to(tl.float32)
    if OFFSET != 0.0:
        weight += OFFSET
    return weight


@triton.jit
def _turned(
    first,
    second,
    cos_sin_row,
    live,
    dtype: tl.constexpr,
    TURNED: tl.constexpr,
    PAIRS: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Both channels of each pair, turned; the table is in halves, whatever the channels' order."""
    cos, sin = _load_pairs(cos_sin_row, live, TURNED, PAIRS, False)
    a, b = first.to(tl.float32), second.to(tl.float32)
    first = round_to(a * cos - b * sin, dtype, INTERPRETED)
    second = round_to(b * cos + a * sin, dtype, INTERPRETED)
    return first, second


@triton.jit
def _heads(
    start,  # [rows] pointers to channel 0 of each head
    norm_ptr,  # [HEAD_DIM], where NORM
    cos_sin_row,  # [rows] pointers to a row of cos_sin, where TURNED
    cache_ptr,  # rows of HEAD_DIM, where CACHED
    scales_ptr,  # one for each row of the cache, where CACHED and LARGEST
    cache_row,  # [rows] int64
    given,  # [rows]: within the tensor, so that it may be read before its slot is known
    live,  # [rows]: given, and no padding
    epsilon,
    CACHED: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    NORM: tl.constexpr,
    NORM_LAST: tl.constexpr,  # after the turn
    NORM_OFFSET: tl.constexpr,  # added to the norm's weights
    TURNED: tl.constexpr,
    PAIRS: tl.constexpr,
    PADDED_REST: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    LARGEST: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    dtype: tl.constexpr = start.dtype.element_ty
    REST: tl.constexpr = HEAD_DIM - TURNED
    if TURNED > 0:
        first, second = _load_pairs(start, given, TURNED, PAIRS, INTERLEAVED)
    if REST > 0:
        rest = _load_rest(start, given, TURNED, REST, PADDED_REST)
    if TURNED > 0 and NORM_LAST:
        first, second = _turned(first, second, cos_sin_row, live, dtype, TURNED, PAIRS, INTERPRETED)
    if NORM:
        squares = tl.zeros([start.shape[0]], tl.float32)
        if TURNED > 0:
            squares += tl.sum(first.to(tl.float32) * first.to(tl.float32), axis=1)
            squares += tl.sum(second.to(tl.float32) * second.to(tl.float32), axis=1)
        if REST > 0:
            squares += tl.sum(rest.to(tl.float32) * rest.to(tl.float32), axis=1)
        size = (1.0 / tl.sqrt_rn(squares / HEAD_DIM + epsilon))[:, None]
        # Read once a row: so the weights are where the values are, without an exchange.
        shared = norm_ptr + tl.zeros([start.shape[0]], tl.int32)
        if TURNED > 0:
            w_first, w_second = _load_pairs(shared, given, TURNED, PAIRS, INTERLEAVED)
            first = first.to(tl.float32) * size * _factor(w_first, NORM_OFFSET)
            second = second.to(tl.float32) * size * _factor(w_second, NORM_OFFSET)
            first = round_to(first, dtype, INTERPRETED)
            second = round_to(second, dtype, INTERPRETED)
        if REST > 0:
            weight = _load_rest(shared, given, TURNED, REST, PADDED_REST)
            weight = _factor(weight, NORM_OFFSET)
            rest = round_to(rest.to(tl.float32) * size * weight, dtype, INTERPRETED)
    if TURNED > 0 and not NORM_LAST:
        first, second = _turned(first, second, cos_sin_row, live, dtype, TURNED, PAIRS, INTERPRETED)
    if NORM or TURNED > 0:
        # A tile with fewer elements than the program has threads is held several times over: no
        # copy may be read after another one was stored.
        tl.debug_barrier()
        if TURNED > 0:
            _store_pairs(start, first, second, live, TURNED, PAIRS, INTERLEAVED)
        if NORM and REST > 0:
            _store_rest(start, rest, live, TURNED, REST, PADDED_REST)
    if CACHED:
        if LARGEST > 0:
            largest = tl.zeros([start.shape[0]], tl.int32)
            if TURNED > 0:
                first = first.to(tl.float32)
                second = second.to(tl.float32)
                largest = tl.maximum(_largest_bits(first), _largest_bits(second))
            if REST > 0:
                rest = rest.to(tl.float32)
                largest = tl.maximum(largest, _largest_bits(rest))
            largest = largest.to(tl.float32, bitcast=True)
            scales = tl.div_rn(largest, tl.full([start.shape[0]], LARGEST, tl.float32))
            scales = tl.where(scales == 0.0, 1.0, scales)
            tl.store(scales_ptr + cache_row, scales, live)
            if TURNED > 0:
                first = _numbers(first, scales, LARGEST)
                second = _numbers(second, scales, LARGEST)
            if REST > 0:
                rest = _numbers(rest, scales, LARGEST)
        slot = cache_ptr + cache_row * HEAD_DIM
        if TURNED > 0:
            _store_pairs(slot, first, second, live, TURNED, PAIRS, INTERLEAVED)
        if REST > 0:
            _store_rest(slot, rest, live, TURNED, REST, PADDED_REST)


@triton.jit(do_not_specialize=["tokens"])
def rotary_store_kv(
    q_ptr,  # [tokens, Q_HEADS, HEAD_DIM], tokens q_stride apart
    k_ptr,  # [tokens, KV_HEADS, HEAD_DIM], tokens k_stride apart
    v_ptr,  # [tokens, KV_HEADS, HEAD_DIM], tokens v_stride apart
    cache_ptr,  # [blocks, 2, KV_HEADS, BLOCK_SIZE, HEAD_DIM]; float8 as uint8
    scales_ptr,  # [blocks, 2, KV_HEADS, BLOCK_SIZE] float32, where LARGEST
    slots_ptr,  # [tokens] int64, negative for padding
    positions_ptr,  # [tokens] int64, where TURNED
    cos_sin_ptr,  # [P, TURNED] float32, where TURNED
    q_norm_ptr,  # [HEAD_DIM], where NORM
    k_norm_ptr,  # [HEAD_DIM], where NORM
    tokens,
    q_stride,
    k_stride,
    v_stride,
    epsilon,
    Q_HEADS: tl.constexpr,  # 0 where queries stay as they are
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    NORM: tl.constexpr,
    NORM_LAST: tl.constexpr,  # after the turn
    NORM_OFFSET: tl.constexpr,  # added to the norm's weights
    TURNED: tl.constexpr,  # channels that turn, from the first on; 0 for none
    INTERLEAVED: tl.constexpr,
    LARGEST: tl.constexpr,  # of a quantised cache: 127.0 for int8, 448.0 for float8_e4m3fn; else 0
    PAIRS: tl.constexpr,  # TURNED / 2 up to a power of two
    PADDED_REST: tl.constexpr,  # HEAD_DIM - TURNED up to a power of two
    PADDED_HEAD: tl.constexpr,  # HEAD_DIM up to a power of two
    TOKENS: tl.constexpr,
    HEADS: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    Q_GROUPS: tl.constexpr = (Q_HEADS + HEADS - 1) // HEADS
    KV_GROUPS: tl.constexpr = (KV_HEADS + HEADS - 1) // HEADS
    row = tl.arange(0, TOKENS * HEADS)
    token = tl.program_id(0).to(tl.int64) * TOKENS + row // HEADS
    group = tl.program_id(1)
    given = token < tokens
    slot = tl.load(slots_ptr + token, given, other=-1)
    live = slot >= 0
    cos_sin_row = cos_sin_ptr
    if TURNED > 0:
        cos_sin_row += tl.load(positions_ptr + token, live, other=0) * TURNED
    block_row = slot // BLOCK_SIZE * (2 * KV_HEADS * BLOCK_SIZE) + slot % BLOCK_SIZE
    if group < Q_GROUPS:
        head = group * HEADS + row % HEADS
        _heads(
            q_ptr + token * q_stride + head * HEAD_DIM,
            q_norm_ptr,
            cos_sin_row,
            cache_ptr,
            scales_ptr,
            block_row,
            given & (head < Q_HEADS),
            live & (head < Q_HEADS),
            epsilon,
            False,
            HEAD_DIM,
            NORM,
            NORM_LAST,
            NORM_OFFSET,
            TURNED,
            PAIRS,
            PADDED_REST,
            INTERLEAVED,
            LARGEST,
            INTERPRETED,
        )
    elif group < Q_GROUPS + KV_GROUPS:
        head = (group - Q_GROUPS) * HEADS + row % HEADS
        _heads(
            k_ptr + token * k_stride + head * HEAD_DIM,
            k_norm_ptr,
            cos_sin_row,
            cache_ptr,
            scales_ptr,
            block_row + head * BLOCK_SIZE,
            given & (head < KV_HEADS),
            live & (head < KV_HEADS),
            epsilon,
            True,
            HEAD_DIM,
            NORM,
            NORM_LAST,
            NORM_OFFSET,
            TURNED,
            PAIRS,
            PADDED_REST,
            INTERLEAVED,
            LARGEST,
            INTERPRETED,
        )
    else:
        head = (group - Q_GROUPS - KV_GROUPS) * HEADS + row % HEADS
        _heads(
            v_ptr + token * v_stride + head * HEAD_DIM,
            k_norm_ptr,
            cos_sin_row,
            cache_ptr,
            scales_ptr,
            block_row + (KV_HEADS + head) * BLOCK_SIZE,
            given & (head < KV_HEADS),
            live & (head < KV_HEADS),
            epsilon,
            True,
            HEAD_DIM,
            False,
            False,
            0.0,
            0,
            1,
            PADDED_HEAD,
            False,
            LARGEST,
            INTERPRETED,
        )
