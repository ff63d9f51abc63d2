"""Attention within sequences that lie one after the other, without a cache."""

import triton
import triton.language as tl

from kernels.jit.attention_math import first_visible, load_tile, normalised, product, with_sinks
from kernels.jit.query_tiles import (
    accumulate,
    find_row,
    key_tiles,
    load_full_tile,
    score_factor,
    tile_scores,
    visible,
)


@triton.jit
def _key_tile(
    q_tile,
    k,
    v,
    k_stride,
    v_stride,
    first,
    oldest,
    length,
    positions,
    slopes,
    scale,
    soft_cap,
    window,
    factor,
    highest,
    total,
    weighted,
    MASKED: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_PAD: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CAUSAL: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SOFT_CAP: tl.constexpr,
    HAS_ALIBI: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """The sequence's keys and values first : first + BLOCK_N join the sums.

    ``k`` and ``v`` point to its first token. Not MASKED: every lane sees all of them.
    """
    keys = first + tl.arange(0, BLOCK_N)
    channels = tl.arange(0, HEAD_PAD)
    lines = keys.to(tl.int64)[:, None]
    k_pointers = k + lines * k_stride + channels[None, :]
    v_pointers = v + lines * v_stride + channels[None, :]
    if MASKED:
        held = (keys < length) & (keys >= oldest)
        k_tile = load_tile(k_pointers, held, HEAD_DIM, HEAD_PAD)
        v_tile = load_tile(v_pointers, held, HEAD_DIM, HEAD_PAD)
    else:
        k_tile = load_full_tile(k_pointers, HEAD_DIM, HEAD_PAD)
        v_tile = load_full_tile(v_pointers, HEAD_DIM, HEAD_PAD)
    if INTERPRETED:
        k_tile = k_tile.to(tl.float32)
        v_tile = v_tile.to(tl.float32)
    products = product(q_tile, tl.trans(k_tile), INTERPRETED)
    scores = tile_scores(
        products, scale, soft_cap, slopes, positions, keys, HAS_SOFT_CAP, HAS_ALIBI
    )
    if MASKED:
        seen = visible(positions, keys, length, window, CAUSAL, HAS_WINDOW)
        scores = tl.where(seen, scores, float("-inf"))
    return accumulate(scores, factor, v_tile, keys, highest, total, weighted, False, INTERPRETED)


@triton.jit(
    do_not_specialize=["num_rows", "num_tiles", "window"],
    do_not_specialize_on_alignment=["num_rows", "num_tiles", "window"],
)
def varlen_attention(
    # tensors
    out,  # [T, NUM_KV_HEADS * GROUP, HEAD_DIM], contiguous
    q,  # the same shape, strided by token and head
    k,  # [T, NUM_KV_HEADS, HEAD_DIM], strided by token and head
    v,  # as k
    cu_seqlens,  # [num_rows + 1] int32
    alibi_slopes,  # [NUM_KV_HEADS * GROUP] float32, or None
    sinks,  # the same, or None
    # numbers
    num_rows,
    num_tiles,
    q_token_stride,
    q_head_stride,
    k_token_stride,
    k_head_stride,
    v_token_stride,
    v_head_stride,
    scale,
    soft_cap,
    window,
    # sizes
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_PAD: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    # what is done
    CAUSAL: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SOFT_CAP: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """A program: one KV head's queries of up to BLOCK_M // GROUP tokens of a sequence.

    Tiles of queries and of keys lie on grids from the sequence's first token, so that neighbours do
    not change its bits. Keys that every query sees go through a loop without masks.
    """
    HAS_ALIBI: tl.constexpr = alibi_slopes is not None
    HEADS: tl.constexpr = GROUP if GROUP < BLOCK_M else BLOCK_M
    PARTS: tl.constexpr = (GROUP + HEADS - 1) // HEADS
    BLOCK_Q: tl.constexpr = BLOCK_M // HEADS

    program = tl.program_id(0)
    head = program % (NUM_KV_HEADS * PARTS) // PARTS
    tile = num_tiles - 1 - program // (NUM_KV_HEADS * PARTS)
    row = find_row(cu_seqlens, num_rows, tile, BLOCK_Q)
    start = tl.load(cu_seqlens + row)
    length = tl.load(cu_seqlens + row + 1) - start
    first_query = (tile - (start // BLOCK_Q + row)) * BLOCK_Q
    if first_query >= length:
        return

    lanes = tl.arange(0, BLOCK_M)
    channels = tl.arange(0, HEAD_PAD)
    positions = first_query + lanes // HEADS
    members = program % PARTS * HEADS + lanes % HEADS
    heads = head * GROUP + members
    stored = (lanes < BLOCK_Q * HEADS) & (members < GROUP) & (positions < length)
    positions = tl.minimum(positions, length - 1)
    mask = stored[:, None] & (channels < HEAD_DIM)[None, :]
    lines = (start + positions).to(tl.int64)[:, None]
    q_places = lines * q_token_stride + heads[:, None] * q_head_stride + channels[None, :]
    q_tile = tl.load(q + q_places, mask=mask, other=0.0)
    if INTERPRETED:
        q_tile = q_tile.to(tl.float32)
    slopes = scale
    if HAS_ALIBI:
        slopes = tl.load(alibi_slopes + heads, mask=stored, other=0.0)

    last_query = tl.minimum(first_query + BLOCK_Q, length) - 1
    low, full_low, full_high, high = key_tiles(
        first_query, last_query, length, window, CAUSAL, HAS_WINDOW, BLOCK_N
    )
    oldest = first_visible(first_query, window, HAS_WINDOW)
    factor = score_factor(scale, HAS_SOFT_CAP, HAS_ALIBI)
    k += start.to(tl.int64) * k_token_stride + head * k_head_stride
    v += start.to(tl.int64) * v_token_stride + head * v_head_stride
    highest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    weighted = tl.zeros([BLOCK_M, HEAD_PAD], tl.float32)
    for index in tl.range(full_low, full_high):
        highest, total, weighted = _key_tile(
            q_tile,
            k,
            v,
            k_token_stride,
            v_token_stride,
            index * BLOCK_N,
            oldest,
            length,
            positions,
            slopes,
            scale,
            soft_cap,
            window,
            factor,
            highest,
            total,
            weighted,
            False,
            HEAD_DIM,
            HEAD_PAD,
            BLOCK_N,
            CAUSAL,
            HAS_WINDOW,
            HAS_SOFT_CAP,
            HAS_ALIBI,
            INTERPRETED,
        )
    # The tiles at the edges: low .. full_low, then full_high .. high.
    before = full_low - low
    skipped = full_high - full_low
    for turn in tl.range(0, before + high - full_high):
        index = low + turn + tl.where(turn < before, 0, skipped)
        highest, total, weighted = _key_tile(
            q_tile,
            k,
            v,
            k_token_stride,
            v_token_stride,
            index * BLOCK_N,
            oldest,
            length,
            positions,
            slopes,
            scale,
            soft_cap,
            window,
            factor,
            highest,
            total,
            weighted,
            True,
            HEAD_DIM,
            HEAD_PAD,
            BLOCK_N,
            CAUSAL,
            HAS_WINDOW,
            HAS_SOFT_CAP,
            HAS_ALIBI,
            INTERPRETED,
        )

    if sinks is not None:
        logits = tl.load(sinks + heads, mask=stored, other=0.0)
        highest, total, kept = with_sinks(highest * factor, total, logits)
        weighted = weighted * kept[:, None]
    result = normalised(weighted, total).to(out.dtype.element_ty)
    tokens = lines * (NUM_KV_HEADS * GROUP * HEAD_DIM)
    tl.store(out + tokens + heads[:, None] * HEAD_DIM + channels[None, :], result, mask=mask)
