"""What the attention kernels share: tiles of the paged cache, scores, the online softmax.

Scores are kept times log2(e), so that the softmax is made of exp2, one instruction on a GPU. Tiles
of keys and values are [TILE, HEAD_PAD], HEAD_PAD the power of two that holds HEAD_DIM; channels and
slots that are not there are loaded as zeros, never multiplied away: a stale slot may hold NaN, and
0 * NaN is NaN. A constexpr INTERPRETED widens to float32 before arithmetic, because Triton's
interpreter computes bfloat16 wrongly.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


# --- the paged cache, [num_blocks, 2, NUM_KV_HEADS, BLOCK_SIZE, HEAD_DIM] ---


@triton.jit
def tile_pages(table, first, oldest, context, TILE: tl.constexpr, BLOCK_SIZE: tl.constexpr):
    """Block ids of positions first : first + TILE, ``first`` being a multiple of TILE.

    A scalar where one block holds the tile, else [TILE]. ``table`` is a row of the block tables.
    Only entries of blocks with a position in oldest : context are read; block 0 stands in for the
    others.
    """
    if BLOCK_SIZE >= TILE:
        needed = (first < context) & (first + TILE > oldest)
        return tl.load(table + first // BLOCK_SIZE, mask=needed, other=0)
    else:
        positions = first + tl.arange(0, TILE)
        needed = (positions < context) & (positions >= oldest)
        return tl.load(table + positions // BLOCK_SIZE, mask=needed, other=0)


@triton.jit
def tile_pointers(
    cache,
    pages,
    first,
    head,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_PAD: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    """Pointers [TILE, HEAD_PAD] to a tile's keys; its values lie NUM_KV_HEADS * BLOCK_SIZE *
    HEAD_DIM elements behind them. ``pages`` are tile_pages of the same ``first``."""
    slots = tl.arange(0, TILE)
    channels = tl.arange(0, HEAD_PAD)
    rows = (pages.to(tl.int64) * (2 * NUM_KV_HEADS) + head) * BLOCK_SIZE
    if BLOCK_SIZE >= TILE:
        start = cache + (rows + first % BLOCK_SIZE) * HEAD_DIM
        return start + (slots[:, None] * HEAD_DIM + channels[None, :])
    rows += slots % BLOCK_SIZE
    return cache + (rows * HEAD_DIM)[:, None] + channels[None, :]


@triton.jit
def scale_pointers(
    kv_scales,
    pages,
    first,
    head,
    NUM_KV_HEADS: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    """Pointers [TILE] to the scales of a tile's keys; its values' lie NUM_KV_HEADS * BLOCK_SIZE
    elements behind them. kv_scales is [num_blocks, 2, NUM_KV_HEADS, BLOCK_SIZE] float32."""
    slots = tl.arange(0, TILE)
    rows = (pages.to(tl.int64) * (2 * NUM_KV_HEADS) + head) * BLOCK_SIZE
    if BLOCK_SIZE >= TILE:
        return kv_scales + (rows + first % BLOCK_SIZE) + slots
    return kv_scales + rows + slots % BLOCK_SIZE


@triton.jit
def load_tile(pointers, held, HEAD_DIM: tl.constexpr, HEAD_PAD: tl.constexpr):
    """A tile as stored, zeros where ``held`` [TILE] is false and in the channels past HEAD_DIM."""
    mask = held[:, None]
    if HEAD_DIM != HEAD_PAD:
        mask = mask & (tl.arange(0, HEAD_PAD) < HEAD_DIM)[None, :]
    return tl.load(pointers, mask=mask, other=0.0)


@triton.jit
def numbers(tile, DTYPE: tl.constexpr, INTERPRETED: tl.constexpr):
    """A stored tile in the type that products are made in: DTYPE, or float32 if interpreted.

    uint8 is float8_e4m3fn by its bits, for architectures without that type: sign, exponent and
    mantissa fall into their places of a float16 whose exponent is biased by 8 more.
    """
    if tile.dtype == tl.uint8:
        wide = tile.to(tl.uint16)
        bits = ((wide & 0x80) << 8) | ((wide & 0x7F) << 7)
        halves = bits.to(tl.float16, bitcast=True)
        # 256 undoes the bias exactly, in float16 too: the largest number is 448.
        tile = halves.to(tl.float32) * 256.0 if INTERPRETED else halves * 256.0
    if INTERPRETED:
        return tile.to(tl.float32)
    if tile.dtype == tl.int8 and tl.float16 == DTYPE:
        # 1024 + 128 + the number, put together by its bits: conversions of integers are slow.
        bits = (tile.to(tl.uint8, bitcast=True) ^ 0x80).to(tl.uint16) | 0x6400
        return bits.to(tl.float16, bitcast=True) - 1152.0
    return tile.to(DTYPE)


@triton.jit
def product(a, b, INTERPRETED: tl.constexpr):
    """a @ b in float32; both in one type, as ``numbers`` makes it. float32 is not rounded."""
    if INTERPRETED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    if a.dtype == tl.float32:
        return tl.dot(a, b, input_precision="ieee")
    return tl.dot(a, b)


# --- scores, times log2(e) ---


@triton.jit
def tanh(x):
    """From exp2 alone; saturates to -1 and 1, and keeps its sign's symmetry."""
    decay = tl.exp2(-2.0 * LOG2E * tl.abs(x))
    return tl.where(x < 0, -1.0, 1.0) * (1.0 - decay) / (1.0 + decay)


@triton.jit
def scaled_scores(products, scale, soft_cap, HAS_SOFT_CAP: tl.constexpr):
    """Scores of q.k, capped where HAS_SOFT_CAP, times log2(e)."""
    if HAS_SOFT_CAP:
        return tanh(products * (scale / soft_cap)) * (soft_cap * LOG2E)
    return products * (scale * LOG2E)


@triton.jit
def alibi(scores, slopes, queries, keys):
    """slopes [M] (one for each row of ``scores`` [M, N]) times the distance from query to key.

    ``queries`` [M] and ``keys`` [N] are positions.
    """
    distances = (keys[None, :] - queries[:, None]).to(tl.float32)
    return scores + (slopes * LOG2E)[:, None] * distances


@triton.jit
def first_visible(query, window, HAS_WINDOW: tl.constexpr):
    """The first key position that the query at position ``query`` sees."""
    if HAS_WINDOW:
        return tl.maximum(query - window + 1, 0)
    return query * 0


# --- the softmax, tile by tile ---


@triton.jit
def origin_of(highest):
    """What weights are counted from: the highest score, or 0 where nothing was seen."""
    return tl.where(highest == float("-inf"), 0.0, highest)


@triton.jit
def softmax_step(scores, highest):
    """One tile's weights and what the sums so far are still worth.

    ``scores`` [M, N] are times log2(e) and -inf where hidden; ``highest`` [M] is the highest score
    so far, -inf at the start. Returns (the new highest, the weights [M, N], the factor [M] for the
    sums so far). A row that has seen nothing yet gets weights 0, not NaN.
    """
    now = tl.maximum(highest, tl.max(scores, 1))
    origin = origin_of(now)
    weights = tl.exp2(scores - origin[:, None])
    return now, weights, tl.exp2(highest - origin)


@triton.jit
def with_sinks(highest, total, sinks):
    """The sink's logit [M] joins a finished softmax, once for each row and without a value.

    Returns (the new highest, the new total, the factor [M] for the weighted values).
    """
    logits = sinks * LOG2E
    now = tl.maximum(highest, logits)
    kept = tl.exp2(highest - now)
    return now, total * kept + tl.exp2(logits - now), kept


@triton.jit
def normalised(weighted, total):
    """Weighted values [M, D] over the sum of the weights [M]; zeros where nothing was seen."""
    return weighted / tl.where(total == 0.0, 1.0, total)[:, None]
