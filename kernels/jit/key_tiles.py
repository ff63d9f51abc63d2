"""What the kernels with many queries share: the keys a tile of queries sees, and a tile of keys.

The sums of the online softmax so far are a tuple, (highest score [M], total weight [M], weighted
values [M, D]); see kernels.jit.query_tiles for the M lanes.
"""

import triton
import triton.language as tl

from kernels.jit.attention_math import LOG2E, alibi, numbers, product, scaled_scores


@triton.jit
def key_tiles(
    first_query,
    last_query,
    context,
    window,
    CAUSAL: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Which tiles of BLOCK_N keys the queries at positions first_query .. last_query see.

    Returns (low, full_low, full_high, high): tiles low .. high hold every visible key, and each
    query sees all of tiles full_low .. full_high; where there is none of those, both are ``high``.
    """
    low = first_query * 0
    full_low = low
    end = context
    full_end = context
    if CAUSAL:
        end = last_query + 1
        full_end = first_query + 1
    if HAS_WINDOW:
        low = tl.maximum(first_query - window + 1, 0) // BLOCK_N
        full_low = tl.cdiv(tl.maximum(last_query - window + 1, 0), BLOCK_N)
        if not CAUSAL:
            end = tl.minimum(context, last_query + window)
            full_end = tl.minimum(context, first_query + window)
    high = tl.cdiv(end, BLOCK_N)
    full_high = full_end // BLOCK_N
    none = full_low >= full_high
    return low, tl.where(none, high, full_low), tl.where(none, high, full_high), high


@triton.jit
def rounds_of(tiles, MASKED: tl.constexpr):
    """(begin, end, tile of the first) of the rounds over ``tiles`` as key_tiles told them: those
    that all queries see whole; MASKED, those at the edges, low .. full_low, full_high .. high."""
    low, full_low, full_high, high = tiles
    if MASKED:
        before = full_low - low
        return 0, before + high - full_high, tl.where(before > 0, low, full_high)
    else:
        return full_low, full_high, full_low


@triton.jit
def tile_of_round(turn, tiles, MASKED: tl.constexpr):
    """The tile of a round: the edges skip what lies between them."""
    low, full_low, full_high, _ = tiles
    if MASKED:
        return low + turn + tl.where(turn < full_low - low, 0, full_high - full_low)
    else:
        return turn


@triton.jit
def visible(
    positions,
    keys,
    context,
    window,
    CAUSAL: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
):
    """[M, N]: whether the query at positions[m] sees the key at keys[n]."""
    if CAUSAL:
        seen = keys[None, :] <= positions[:, None]
    else:
        seen = (keys[None, :] < context) & (positions[:, None] < context)
    if HAS_WINDOW:
        seen = seen & (keys[None, :] > positions[:, None] - window)
        if not CAUSAL:
            seen = seen & (keys[None, :] < positions[:, None] + window)
    return seen


@triton.jit
def load_full_tile(pointers, HEAD_DIM: tl.constexpr, HEAD_PAD: tl.constexpr):
    """A tile whose slots are all held: no mask but for the channels past HEAD_DIM."""
    if HEAD_DIM == HEAD_PAD:
        return tl.load(pointers)
    else:
        return tl.load(pointers, mask=(tl.arange(0, HEAD_PAD) < HEAD_DIM)[None, :], other=0.0)


@triton.jit
def score_factor(scale, HAS_SOFT_CAP: tl.constexpr, HAS_ALIBI: tl.constexpr):
    """What makes the scores of ``tile_scores`` scores times log2(e).

    Plain products stay as they are, and the factor joins the subtraction before exp2 as one fused
    multiply-add; a soft cap and ALiBi have already applied it.
    """
    if HAS_SOFT_CAP or HAS_ALIBI:
        return 1.0
    else:
        return scale * LOG2E


@triton.jit
def tile_scores(
    products,
    scale,
    soft_cap,
    slopes,
    positions,
    keys,
    HAS_SOFT_CAP: tl.constexpr,
    HAS_ALIBI: tl.constexpr,
):
    """Scores [M, N] of q.k, still to be multiplied by ``score_factor``."""
    if HAS_SOFT_CAP or HAS_ALIBI:
        products = scaled_scores(products, scale, soft_cap, HAS_SOFT_CAP)
    if HAS_ALIBI:
        products = alibi(products, slopes, positions, keys)
    return products


@triton.jit
def nothing_seen(BLOCK_M: tl.constexpr, HEAD_PAD: tl.constexpr):
    """The sums of a softmax over no keys: (highest [M], total [M], weighted [M, D])."""
    highest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    return highest, tl.zeros([BLOCK_M], tl.float32), tl.zeros([BLOCK_M, HEAD_PAD], tl.float32)


@triton.jit
def accumulate(
    scores,
    factor,
    values,
    value_scales,
    highest,
    total,
    weighted,
    HAS_SCALES: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """One tile of the online softmax: (highest [M], total [M], weighted [M, D]) with it.

    ``scores`` [M, N] are -inf where hidden; a tile that a lane sees nothing of leaves its sums as
    they are, to the bit. ``value_scales`` [N] join the weights, so that ``values`` stay exact.
    """
    now = tl.maximum(highest, tl.max(scores, 1))
    origin = tl.where(now == float("-inf"), 0.0, now) * factor
    weights = tl.exp2(scores * factor - origin[:, None])
    kept = tl.where(highest == now, 1.0, tl.exp2(highest * factor - origin))
    total = total * kept + tl.sum(weights, 1)
    if HAS_SCALES:
        weights = weights * value_scales[None, :]
    weighted = weighted * kept[:, None] + product(weights.to(values.dtype), values, INTERPRETED)
    return now, total, weighted


@triton.jit
def attend_tile(
    queries,  # (queries [M, D], their positions [M], their slopes [M])
    k,  # [N, D] as stored
    k_scales,  # [N] if HAS_SCALES
    v,  # [N, D] as stored
    v_scales,  # [N] if HAS_SCALES
    keys,  # [N] positions
    context,
    how,  # (scale, soft_cap, window, score_factor of them)
    sums,  # of the tiles before
    MASKED: tl.constexpr,  # else every lane sees all of the keys
    CAUSAL: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SOFT_CAP: tl.constexpr,
    HAS_ALIBI: tl.constexpr,
    HAS_SCALES: tl.constexpr,
    VALUE_DTYPE: tl.constexpr,  # what values and weights are multiplied in
    INTERPRETED: tl.constexpr,
):
    """A tile of keys and values joins the sums (highest [M], total [M], weighted [M, D])."""
    q, positions, slopes = queries
    scale, soft_cap, window, factor = how
    highest, total, weighted = sums
    products = product(q, tl.trans(numbers(k, q.dtype, INTERPRETED)), INTERPRETED)
    if HAS_SCALES:
        products = products * k_scales[None, :]
    scores = tile_scores(
        products, scale, soft_cap, slopes, positions, keys, HAS_SOFT_CAP, HAS_ALIBI
    )
    if MASKED:
        seen = visible(positions, keys, context, window, CAUSAL, HAS_WINDOW)
        scores = tl.where(seen, scores, float("-inf"))
    values = numbers(v, VALUE_DTYPE, INTERPRETED)
    return accumulate(
        scores, factor, values, v_scales, highest, total, weighted, HAS_SCALES, INTERPRETED
    )
