"""Rows of many query tokens over the paged cache: chunks of prompts, behind whatever is cached."""

import triton
import triton.language as tl

from kernels.jit.attention_math import (
    first_visible,
    load_tile,
    normalised,
    numbers,
    product,
    scale_pointers,
    tile_pages,
    tile_pointers,
    with_sinks,
)
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
    cache,
    cache_rows,
    kv_scales,
    pages,
    first,
    oldest,
    context,
    head,
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
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_PAD: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SOFT_CAP: tl.constexpr,
    HAS_ALIBI: tl.constexpr,
    HAS_SCALES: tl.constexpr,
    VALUE_DTYPE: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """The keys and values at positions first : first + BLOCK_N join the sums.

    Not MASKED: every lane sees all of them.
    """
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
    products = product(q_tile, tl.trans(numbers(k, q_tile.dtype, INTERPRETED)), INTERPRETED)
    if HAS_SCALES:
        products = products * k_scales[None, :]
    scores = tile_scores(
        products, scale, soft_cap, slopes, positions, keys, HAS_SOFT_CAP, HAS_ALIBI
    )
    if MASKED:
        seen = visible(positions, keys, context, window, True, HAS_WINDOW)
        scores = tl.where(seen, scores, float("-inf"))
    return accumulate(
        scores,
        factor,
        numbers(v, VALUE_DTYPE, INTERPRETED),
        v_scales,
        highest,
        total,
        weighted,
        HAS_SCALES,
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
    query sees whole go through a loop without masks, unless ONE_LOOP. Programs run from the last
    tile to the first: within a row those with the most keys go first.
    """
    HAS_ALIBI: tl.constexpr = alibi_slopes is not None
    HAS_SCALES: tl.constexpr = kv_scales is not None
    # A group of more heads than lanes is cut into parts, each with its own programs.
    HEADS: tl.constexpr = GROUP if GROUP < BLOCK_M else BLOCK_M
    PARTS: tl.constexpr = (GROUP + HEADS - 1) // HEADS
    BLOCK_Q: tl.constexpr = BLOCK_M // HEADS
    # float16 would lose small weights times small scales; numbers of 8 bits are exact in bfloat16.
    HALF_SCALES: tl.constexpr = HAS_SCALES and q.dtype.element_ty == tl.float16
    VALUE_DTYPE: tl.constexpr = tl.bfloat16 if HALF_SCALES else q.dtype.element_ty

    program = tl.program_id(0)
    head = program % (NUM_KV_HEADS * PARTS) // PARTS
    tile = num_tiles - 1 - program // (NUM_KV_HEADS * PARTS)
    row = find_row(query_start_loc, num_rows, tile, BLOCK_Q)
    start = tl.load(query_start_loc + row)
    length = tl.load(query_start_loc + row + 1) - start
    context = tl.load(seq_lens + row)
    first_token = (tile - (start // BLOCK_Q + row)) * BLOCK_Q
    if (first_token >= length) | (length < LEAST_TOKENS) | (context < length):
        return

    lanes = tl.arange(0, BLOCK_M)
    channels = tl.arange(0, HEAD_PAD)
    tokens = first_token + lanes // HEADS
    members = program % PARTS * HEADS + lanes % HEADS
    heads = head * GROUP + members
    stored = (lanes < BLOCK_Q * HEADS) & (members < GROUP) & (tokens < length)
    tokens = tl.minimum(tokens, length - 1)
    positions = context - length + tokens
    mask = stored[:, None] & (channels < HEAD_DIM)[None, :]
    lines = (start + tokens).to(tl.int64)[:, None]
    q_places = lines * q_token_stride + heads[:, None] * q_head_stride + channels[None, :]
    q_tile = tl.load(q + q_places, mask=mask, other=0.0)
    if INTERPRETED:
        q_tile = q_tile.to(tl.float32)
    slopes = scale
    if HAS_ALIBI:
        slopes = tl.load(alibi_slopes + heads, mask=stored, other=0.0)

    first_query = context - length + first_token
    last_query = context - length + tl.minimum(first_token + BLOCK_Q, length) - 1
    low, full_low, full_high, high = key_tiles(
        first_query, last_query, context, window, True, HAS_WINDOW, BLOCK_N
    )
    oldest = first_visible(first_query, window, HAS_WINDOW)
    if ONE_LOOP:
        full_low = high
        full_high = high
    factor = score_factor(scale, HAS_SOFT_CAP, HAS_ALIBI)
    table = block_tables + row.to(tl.int64) * table_stride
    highest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    weighted = tl.zeros([BLOCK_M, HEAD_PAD], tl.float32)

    # The block ids of a tile are loaded one round ahead, so that the loads of keys and values do
    # not wait for them and can be started several rounds early.
    if not ONE_LOOP:
        pages = tile_pages(table, full_low * BLOCK_N, oldest, context, BLOCK_N, BLOCK_SIZE)
        for index in tl.range(full_low, full_high):
            first = index * BLOCK_N
            next_pages = tile_pages(table, first + BLOCK_N, oldest, context, BLOCK_N, BLOCK_SIZE)
            highest, total, weighted = _key_tile(
                q_tile,
                cache,
                cache_rows,
                kv_scales,
                pages,
                first,
                oldest,
                context,
                head,
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
                NUM_KV_HEADS,
                HEAD_DIM,
                HEAD_PAD,
                BLOCK_SIZE,
                BLOCK_N,
                HAS_WINDOW,
                HAS_SOFT_CAP,
                HAS_ALIBI,
                HAS_SCALES,
                VALUE_DTYPE,
                INTERPRETED,
            )
            pages = next_pages

    # The tiles at the edges: low .. full_low (a window's), then full_high .. high (the diagonal).
    before = full_low - low
    rounds = before + high - full_high
    skipped = full_high - full_low
    index = tl.where(before > 0, low, full_high)
    pages = tile_pages(table, index * BLOCK_N, oldest, context, BLOCK_N, BLOCK_SIZE)
    for turn in tl.range(0, rounds):
        index = low + turn + tl.where(turn < before, 0, skipped)
        following = low + turn + 1 + tl.where(turn + 1 < before, 0, skipped)
        next_pages = tile_pages(table, following * BLOCK_N, oldest, context, BLOCK_N, BLOCK_SIZE)
        highest, total, weighted = _key_tile(
            q_tile,
            cache,
            cache_rows,
            kv_scales,
            pages,
            index * BLOCK_N,
            oldest,
            context,
            head,
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
            NUM_KV_HEADS,
            HEAD_DIM,
            HEAD_PAD,
            BLOCK_SIZE,
            BLOCK_N,
            HAS_WINDOW,
            HAS_SOFT_CAP,
            HAS_ALIBI,
            HAS_SCALES,
            VALUE_DTYPE,
            INTERPRETED,
        )
        pages = next_pages

    if sinks is not None:
        logits = tl.load(sinks + heads, mask=stored, other=0.0)
        highest, total, kept = with_sinks(highest * factor, total, logits)
        weighted = weighted * kept[:, None]
    result = normalised(weighted, total).to(out.dtype.element_ty)
    places = lines * out_token_stride + heads[:, None] * HEAD_DIM + channels[None, :]
    tl.store(out + places, result, mask=mask)
