"""Attention within sequences that lie one after the other, without a cache."""

import triton
import triton.language as tl

from kernels.jit.attention_math import first_visible, load_tile
from kernels.jit.key_tiles import (
    attend_tile,
    key_tiles,
    load_full_tile,
    nothing_seen,
    rounds_of,
    score_factor,
    tile_of_round,
)
from kernels.jit.query_tiles import load_queries, store_results, tile_of_program


@triton.jit
def _key_tile(
    queries,
    k,
    v,
    k_stride,
    v_stride,
    first,
    oldest,
    length,
    how,
    sums,
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
    return attend_tile(
        queries,
        k_tile,
        keys,
        v_tile,
        keys,
        keys,
        length,
        how,
        sums,
        MASKED,
        CAUSAL,
        HAS_WINDOW,
        HAS_SOFT_CAP,
        HAS_ALIBI,
        False,
        v.dtype.element_ty,
        INTERPRETED,
    )


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
    _, start, length, first_query, last_query, head, member = tile_of_program(
        cu_seqlens, num_rows, num_tiles, NUM_KV_HEADS, GROUP, BLOCK_M
    )
    if first_query >= length:
        return
    q_tile, positions, slopes, heads, stored = load_queries(
        q,
        q_token_stride,
        q_head_stride,
        alibi_slopes,
        start,
        length,
        first_query,
        head,
        member,
        GROUP,
        HEAD_DIM,
        HEAD_PAD,
        BLOCK_M,
        INTERPRETED,
    )
    tiles = key_tiles(first_query, last_query, length, window, CAUSAL, HAS_WINDOW, BLOCK_N)
    oldest = first_visible(first_query, window, HAS_WINDOW)
    factor = score_factor(scale, HAS_SOFT_CAP, HAS_ALIBI)
    queries = (q_tile, positions, slopes)
    how = (scale, soft_cap, window, factor)
    k += start.to(tl.int64) * k_token_stride + head * k_head_stride
    v += start.to(tl.int64) * v_token_stride + head * v_head_stride
    sums = nothing_seen(BLOCK_M, HEAD_PAD)
    for MASKED in tl.static_range(2):
        begin, end, _ = rounds_of(tiles, MASKED)
        for turn in tl.range(begin, end):
            sums = _key_tile(
                queries,
                k,
                v,
                k_token_stride,
                v_token_stride,
                tile_of_round(turn, tiles, MASKED) * BLOCK_N,
                oldest,
                length,
                how,
                sums,
                MASKED == 1,
                HEAD_DIM,
                HEAD_PAD,
                BLOCK_N,
                CAUSAL,
                HAS_WINDOW,
                HAS_SOFT_CAP,
                HAS_ALIBI,
                INTERPRETED,
            )
    store_results(
        out,
        NUM_KV_HEADS * GROUP * HEAD_DIM,
        sinks,
        start + positions,
        heads,
        stored,
        factor,
        sums,
        HEAD_DIM,
        HEAD_PAD,
    )
