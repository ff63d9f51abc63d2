"""Rows of many query tokens over the paged cache: chunks of prompts, behind whatever is cached."""

import triton
import triton.language as tl

from kernels.jit.attention_math import (
    first_visible,
    load_tile,
    scale_pointers,
    tile_pages,
    tile_pointers,
)
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
    cache,
    cache_rows,
    kv_scales,
    pages,
    first,
    oldest,
    context,
    head,
    how,
    sums,
    MASKED: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_PAD: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SOFT_CAP: tl.constexpr,
    HAS_ALIBI: tl.constexpr,
    VALUE_DTYPE: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """The keys and values at positions first : first + BLOCK_N join the sums.

    Not MASKED: every lane sees all of them.
    """
    HAS_SCALES: tl.constexpr = kv_scales is not None
    PLANE: tl.constexpr = NUM_KV_HEADS * BLOCK_SIZE
    keys = first + tl.arange(0, BLOCK_N)
    held = (keys < context) & (keys >= oldest)
    if cache_rows is not None:
        line = (pages * (2 * NUM_KV_HEADS) + head) * BLOCK_SIZE + first % BLOCK_SIZE
        k = cache_rows.load([line, 0])
        v = cache_rows.load([line + PLANE, 0])
        if MASKED:
            # What a bulk copy brings from stale slots is not zero; a stale value may be NaN.
            v = tl.where(held[:, None], v, tl.zeros_like(v))
    else:
        pointers = tile_pointers(
            cache, pages, first, head, NUM_KV_HEADS, HEAD_DIM, HEAD_PAD, BLOCK_N, BLOCK_SIZE
        )
        if MASKED:
            k = load_tile(pointers, held, HEAD_DIM, HEAD_PAD)
            v = load_tile(pointers + PLANE * HEAD_DIM, held, HEAD_DIM, HEAD_PAD)
        else:
            k = load_full_tile(pointers, HEAD_DIM, HEAD_PAD)
            v = load_full_tile(pointers + PLANE * HEAD_DIM, HEAD_DIM, HEAD_PAD)
    k_scales = held
    v_scales = held
    if HAS_SCALES:
        scales = scale_pointers(kv_scales, pages, first, head, NUM_KV_HEADS, BLOCK_N, BLOCK_SIZE)
        k_scales = tl.load(scales, mask=held, other=0.0)
        v_scales = tl.load(scales + PLANE, mask=held, other=0.0)
    return attend_tile(
        queries,
        k,
        k_scales,
        v,
        v_scales,
        keys,
        context,
        how,
        sums,
        MASKED,
        True,
        HAS_WINDOW,
        HAS_SOFT_CAP,
        HAS_ALIBI,
        HAS_SCALES,
        VALUE_DTYPE,
        INTERPRETED,
    )


@triton.jit(
    do_not_specialize=["num_rows", "num_tiles", "table_stride", "window"],
    do_not_specialize_on_alignment=["num_rows", "num_tiles", "table_stride", "window"],
)
def paged_prefill(
    # tensors
    out,  # [T, NUM_KV_HEADS * GROUP, HEAD_DIM], a token's heads side by side
    q,  # the same shape, strided by token and head
    cache,  # [num_blocks, 2, NUM_KV_HEADS, BLOCK_SIZE, HEAD_DIM]
    cache_rows,  # the cache as a descriptor of boxes [BLOCK_N, HEAD_PAD], or None: by pointers
    kv_scales,  # [num_blocks, 2, NUM_KV_HEADS, BLOCK_SIZE] float32, or None
    block_tables,  # [num_rows, table_stride] int32
    query_start_loc,  # [num_rows + 1] int32
    seq_lens,  # [num_rows] int32
    alibi_slopes,  # [NUM_KV_HEADS * GROUP] float32, or None
    sinks,  # the same, or None
    # numbers
    num_rows,
    num_tiles,
    table_stride,
    q_token_stride,
    q_head_stride,
    out_token_stride,
    scale,
    soft_cap,
    window,
    # sizes
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_PAD: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    # what is done
    LEAST_TOKENS: tl.constexpr,  # rows of fewer are somebody else's
    ONE_LOOP: tl.constexpr,  # every tile of keys goes through the same instructions
    HAS_WINDOW: tl.constexpr,
    HAS_SOFT_CAP: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """A program: one KV head's queries of up to BLOCK_M // GROUP tokens of a row, at least one.

    Tiles of keys lie on a fixed grid from position 0, and a tile that a query sees nothing of does
    not change its sums; so a query's result depends on its row's context alone. Tiles that every
    query sees whole go through a loop without masks, unless ONE_LOOP.
    """
    HAS_ALIBI: tl.constexpr = alibi_slopes is not None
    # float16 would lose small weights times small scales; numbers of 8 bits are exact in bfloat16.
    HALF_SCALES: tl.constexpr = kv_scales is not None and q.dtype.element_ty == tl.float16
    VALUE_DTYPE: tl.constexpr = tl.bfloat16 if HALF_SCALES else q.dtype.element_ty

    row, start, length, first_token, last_token, head, member = tile_of_program(
        query_start_loc, num_rows, num_tiles, NUM_KV_HEADS, GROUP, BLOCK_M
    )
    context = tl.load(seq_lens + row)
    if (first_token >= length) | (length < LEAST_TOKENS) | (context < length):
        return
    q_tile, tokens, slopes, heads, stored = load_queries(
        q,
        q_token_stride,
        q_head_stride,
        alibi_slopes,
        start,
        length,
        first_token,
        head,
        member,
        GROUP,
        HEAD_DIM,
        HEAD_PAD,
        BLOCK_M,
        INTERPRETED,
    )
    before = context - length
    first_query = before + first_token
    tiles = key_tiles(first_query, before + last_token, context, window, True, HAS_WINDOW, BLOCK_N)
    oldest = first_visible(first_query, window, HAS_WINDOW)
    if ONE_LOOP:
        tiles = (tiles[0], tiles[3], tiles[3], tiles[3])
    factor = score_factor(scale, HAS_SOFT_CAP, HAS_ALIBI)
    queries = (q_tile, before + tokens, slopes)
    how = (scale, soft_cap, window, factor)
    table = block_tables + row.to(tl.int64) * table_stride
    sums = nothing_seen(BLOCK_M, HEAD_PAD)
    # The block ids of a tile are loaded one round ahead, so that the loads of keys and values do
    # not wait for them and can be started several rounds early.
    for MASKED in tl.static_range(1 if ONE_LOOP else 0, 2):
        begin, end, tile = rounds_of(tiles, MASKED)
        pages = tile_pages(table, tile * BLOCK_N, oldest, context, BLOCK_N, BLOCK_SIZE)
        for turn in tl.range(begin, end):
            first = tile_of_round(turn, tiles, MASKED) * BLOCK_N
            following = tile_of_round(turn + 1, tiles, MASKED) * BLOCK_N
            next_pages = tile_pages(table, following, oldest, context, BLOCK_N, BLOCK_SIZE)
            sums = _key_tile(
                queries,
                cache,
                cache_rows,
                kv_scales,
                pages,
                first,
                oldest,
                context,
                head,
                how,
                sums,
                MASKED == 1,
                NUM_KV_HEADS,
                HEAD_DIM,
                HEAD_PAD,
                BLOCK_SIZE,
                BLOCK_N,
                HAS_WINDOW,
                HAS_SOFT_CAP,
                HAS_ALIBI,
                VALUE_DTYPE,
                INTERPRETED,
            )
            pages = next_pages
    store_results(
        out,
        out_token_stride,
        sinks,
        start + tokens,
        heads,
        stored,
        factor,
        sums,
        HEAD_DIM,
        HEAD_PAD,
    )
