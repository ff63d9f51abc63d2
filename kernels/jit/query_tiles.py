"""What the kernels with many queries share: tiles of queries, the keys they see, one tile of keys.

A tile of queries is BLOCK_M lanes: lane m is token ``m // GROUP`` of the tile and query head
``m % GROUP`` of the tile's KV head, so that a group shares each tile of keys and the tensor cores
see many lanes for few tokens. Lanes past ``BLOCK_M // GROUP`` tokens, or past the row's last token,
compute something finite that is not stored.
"""

import triton
import triton.language as tl

from kernels.jit.attention_math import LOG2E, alibi, product, scaled_scores


@triton.jit
def find_row(starts, num_rows, tile, BLOCK_Q: tl.constexpr):
    """The row that owns query tile ``tile`` when row r has its first at starts[r] // BLOCK_Q + r.

    That gives every row at least ceil(tokens / BLOCK_Q) tiles, with a total that the host knows:
    tokens // BLOCK_Q + num_rows. ``starts`` rises; rows without tokens have a tile and no work.
    """
    low = 0
    high = num_rows
    while high - low > 1:
        middle = (low + high) // 2
        begins = tl.load(starts + middle) // BLOCK_Q + middle
        low = tl.where(begins <= tile, middle, low)
        high = tl.where(begins <= tile, high, middle)
    return low


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
def load_full_tile(pointers, HEAD_DIM: tl.constexpr, HEAD_PAD: tl.constexpr):
    """A tile whose slots are all held: no mask but for the channels past HEAD_DIM."""
    if HEAD_DIM == HEAD_PAD:
        return tl.load(pointers)
    else:
        return tl.load(pointers, mask=(tl.arange(0, HEAD_PAD) < HEAD_DIM)[None, :], other=0.0)


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
