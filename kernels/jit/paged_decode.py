"""Decode attention over the paged cache: rows with one query token.

Split-KV with the online softmax (Flash-Decoding; Dao et al. 2023), the query heads of a KV head
packed along M so that keys are read once a group, on a persistent grid that follows the work list
of kernels.jit.decode_work. Whoever finishes a split pair last joins its parts, in the same launch.
"""

import triton
import triton.language as tl

from kernels.jit.attention_math import (
    alibi,
    first_visible,
    load_tile,
    normalised,
    numbers,
    origin_of,
    product,
    scale_pointers,
    scaled_scores,
    softmax_step,
    tile_pages,
    tile_pointers,
    with_sinks,
)

# The powers of two that are taken out of a scale: their inverses are normal float32 numbers.
LEAST_POWER = tl.constexpr(-100)
MOST_POWER = tl.constexpr(126)


@triton.jit
def split_scale(scales):
    """Scales as 2 ** power * fraction, exactly; and 2 ** -power. The fraction is 1 .. 2, or what is
    left where the power is at one of its limits: so what is not finite stays in it. By the bits: a
    logarithm costs more than all else that a slot's scale is used for."""
    exponents = (scales.to(tl.int32, bitcast=True) >> 23) & 0xFF
    power = tl.minimum(tl.maximum(exponents - 127, LEAST_POWER), MOST_POWER)
    inverse = ((127 - power) << 23).to(tl.float32, bitcast=True)
    return power.to(tl.float32), scales * inverse, inverse


@triton.jit
def in_units(queries, PRODUCT_TYPE: tl.constexpr, INTERPRETED: tl.constexpr):
    """Queries [M, D] divided by their rows' largest, and these [M]: float16, which numbers of 8
    bits become in one instruction, then holds what bfloat16 may hold."""
    queries32 = queries.to(tl.float32)
    largest = tl.max(tl.abs(queries32), 1)
    units = tl.where(largest == 0.0, 1.0, largest)
    return numbers(queries32 / units[:, None], PRODUCT_TYPE, INTERPRETED), units


@triton.jit
def attend_segment(
    queries,  # [GROUP_ROWS, HEAD_PAD] in PRODUCT_TYPE, and divided by units if QUANTISED
    units,  # [GROUP_ROWS] float32
    slopes,  # [GROUP_ROWS]
    cache,
    kv_scales,
    table,  # this row's block table
    head,
    first,  # positions first : end are attended, first being a multiple of TILE
    end,
    context,
    scale,
    soft_cap,
    window,
    GROUP_ROWS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_PAD: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SOFT_CAP: tl.constexpr,
    HAS_ALIBI: tl.constexpr,
    QUANTISED: tl.constexpr,
    PRODUCT_TYPE: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Highest scores [GROUP_ROWS], sums of weights and weighted values over the segment."""
    highest = tl.full([GROUP_ROWS], float("-inf"), tl.float32)
    # Sums stay apart by slot until the end: one reduction across warps a segment, not one a tile.
    totals = tl.zeros([GROUP_ROWS, TILE], tl.float32)
    weighted = tl.zeros([GROUP_ROWS, HEAD_PAD], tl.float32)
    query = tl.zeros([GROUP_ROWS], tl.int32) + (context - 1)
    oldest = first_visible(context - 1, window, HAS_WINDOW)
    # A tile's block ids are read one iteration ahead, so that the loads of keys and values depend
    # on nothing that is read in their own iteration and can be issued several tiles ahead.
    pages = tile_pages(table, first, oldest, context, TILE, BLOCK_SIZE)
    for start in tl.range(first, end, TILE):
        next_pages = tile_pages(table, start + TILE, oldest, context, TILE, BLOCK_SIZE)
        positions = start + tl.arange(0, TILE)
        held = positions < context
        if HAS_WINDOW:
            held = held & (positions >= oldest)
        pointers = tile_pointers(
            cache, pages, start, head, NUM_KV_HEADS, HEAD_DIM, HEAD_PAD, TILE, BLOCK_SIZE
        )
        keys = load_tile(pointers, held, HEAD_DIM, HEAD_PAD)
        values = load_tile(
            pointers + NUM_KV_HEADS * BLOCK_SIZE * HEAD_DIM, held, HEAD_DIM, HEAD_PAD
        )
        keys = numbers(keys, PRODUCT_TYPE, INTERPRETED)
        scores = product(queries, tl.trans(keys), INTERPRETED)
        if QUANTISED:
            scales = scale_pointers(kv_scales, pages, start, head, NUM_KV_HEADS, TILE, BLOCK_SIZE)
            key_scales = tl.load(scales, mask=held, other=1.0)
            value_scales = tl.load(scales + NUM_KV_HEADS * BLOCK_SIZE, mask=held, other=1.0)
            scores *= key_scales[None, :] * units[:, None]
        scores = scaled_scores(scores, scale, soft_cap, HAS_SOFT_CAP)
        if HAS_ALIBI:
            scores = alibi(scores, slopes, query, positions)
        scores = tl.where(held[None, :], scores, float("-inf"))
        if QUANTISED:
            # The power of two in a value's scale joins the score, and the highest is taken over
            # their sums: so a weight fits float16 however small the scales are.
            power, fraction, inverse = split_scale(value_scales)
            highest, weights, kept = softmax_step(scores + power[None, :], highest)
            totals = totals * kept[:, None] + weights * inverse[None, :]
            weights *= fraction[None, :]
        else:
            highest, weights, kept = softmax_step(scores, highest)
            totals = totals * kept[:, None] + weights
        weighted = weighted * kept[:, None] + product(
            numbers(weights, PRODUCT_TYPE, INTERPRETED),
            numbers(values, PRODUCT_TYPE, INTERPRETED),
            INTERPRETED,
        )
        pages = next_pages
    return highest, tl.sum(totals, 1), weighted


@triton.jit
def join_parts(
    partials,  # [2 * programs, GROUP, HEAD_DIM] float32
    maxima,  # [2 * programs, GROUP] float32
    sums,  # [2 * programs, GROUP] float32
    first_program,
    parts,
    late,  # 1 where the first part is the second that its program left, else 0
    GROUP: tl.constexpr,
    GROUP_PAD: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_PAD: tl.constexpr,
    PARTS: tl.constexpr,
):
    """The softmax over all parts of a pair: as attend_segment's results, [GROUP_PAD ...]."""
    member = tl.arange(0, GROUP_PAD)
    channels = tl.arange(0, HEAD_PAD)
    highest = tl.full([GROUP_PAD], float("-inf"), tl.float32)
    total = tl.zeros([GROUP_PAD], tl.float32)
    weighted = tl.zeros([GROUP_PAD, HEAD_PAD], tl.float32)
    for base in tl.range(0, parts, PARTS, num_stages=3):
        part = base + tl.arange(0, PARTS)
        slot = 2 * (first_program + part) + tl.where(part == 0, late, 0)
        cell = slot[:, None] * GROUP + member[None, :]
        there = (part < parts)[:, None] & (member < GROUP)[None, :]
        # The counter's acquire has emptied the first-level cache of what other multiprocessors have
        # written since; the modifier alone would not do, since loads that are piped drop it.
        peaks = tl.load(maxima + cell, mask=there, other=float("-inf"), cache_modifier=".cg")
        masses = tl.load(sums + cell, mask=there, other=0.0, cache_modifier=".cg")
        values = tl.load(
            partials + cell[:, :, None] * HEAD_DIM + channels[None, None, :],
            mask=there[:, :, None] & (channels < HEAD_DIM)[None, None, :],
            other=0.0,
            cache_modifier=".cg",
        )
        now = tl.maximum(highest, tl.max(peaks, 0))
        origin = origin_of(now)
        rescale = tl.exp2(peaks - origin[None, :])
        kept = tl.exp2(highest - origin)
        total = total * kept + tl.sum(rescale * masses, 0)
        weighted = weighted * kept[:, None] + tl.sum(rescale[:, :, None] * values, 0)
        highest = now
    return highest, total, weighted


@triton.jit
def store_heads(
    out,  # this token's
    highest,
    total,
    weighted,  # [ROWS, HEAD_PAD], the first GROUP rows of which are heads
    sinks,
    head,
    ROWS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_PAD: tl.constexpr,
    HAS_SINKS: tl.constexpr,
):
    """The finished heads of a pair, where its sinks join: once, however it was split."""
    member = tl.arange(0, ROWS)
    channels = tl.arange(0, HEAD_PAD)
    if HAS_SINKS:
        logits = tl.load(sinks + head * GROUP + member, mask=member < GROUP, other=0.0)
        highest, total, kept = with_sinks(highest, total, logits)
        weighted *= kept[:, None]
    result = normalised(weighted, total)
    tl.store(
        out + (head * GROUP + member)[:, None] * HEAD_DIM + channels[None, :],
        result.to(out.dtype.element_ty),
        mask=(member < GROUP)[:, None] & (channels < HEAD_DIM)[None, :],
    )


@triton.jit(do_not_specialize=["window", "table_stride"])
def paged_decode(
    q,  # [T, NUM_KV_HEADS * GROUP, HEAD_DIM], strided by token and head
    cache,  # [num_blocks, 2, NUM_KV_HEADS, BLOCK_SIZE, HEAD_DIM]
    kv_scales,  # [num_blocks, 2, NUM_KV_HEADS, BLOCK_SIZE] float32 if QUANTISED
    block_tables,  # [rows, max_blocks] int32
    out,  # [T, NUM_KV_HEADS * GROUP, HEAD_DIM], contiguous
    slopes,  # [NUM_KV_HEADS * GROUP] float32 if HAS_ALIBI
    sinks,  # [NUM_KV_HEADS * GROUP] float32 if HAS_SINKS
    header,  # the work list, as build_decode_work leaves it
    program_starts,
    records,
    counters,
    partials,  # [2 * programs, GROUP, HEAD_DIM] float32
    maxima,  # [2 * programs, GROUP] float32
    sums,  # [2 * programs, GROUP] float32
    scale,
    soft_cap,
    window,
    q_token_stride,
    q_head_stride,
    table_stride,
    GROUP: tl.constexpr,
    GROUP_ROWS: tl.constexpr,  # rows of a product: GROUP and padding
    GROUP_PAD: tl.constexpr,  # the power of two that holds GROUP
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_PAD: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
    PARTS: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SOFT_CAP: tl.constexpr,
    HAS_ALIBI: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    QUANTISED: tl.constexpr,
    PRODUCT_TYPE: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """One program's share of the work list: parts of pairs at its ends, whole pairs between."""
    program = tl.program_id(0)
    rank = tl.load(program_starts + 4 * program)
    head = tl.load(program_starts + 4 * program + 1)
    tile = tl.load(program_starts + 4 * program + 2)
    count = tl.load(program_starts + 4 * program + 3)
    share = tl.load(header)
    member = tl.arange(0, GROUP_ROWS)
    channels = tl.arange(0, HEAD_PAD)
    place = program * share  # on the line of all pairs' tiles
    while count > 0:
        # 1. The pair and the part of it that is this program's.
        record = records + 4 * rank
        row = tl.load(record)
        token = tl.load(record + 1).to(tl.int64)
        context = tl.load(record + 2)
        first_tile = tl.load(record + 3)
        tiles = (context + TILE - 1) // TILE - first_tile
        stop = tl.minimum(tile + count, tiles)
        # 2. Attend it.
        heads = head * GROUP + member
        queries = tl.load(
            q + token * q_token_stride + heads[:, None] * q_head_stride + channels[None, :],
            mask=(member < GROUP)[:, None] & (channels < HEAD_DIM)[None, :],
            other=0.0,
        )
        units = tl.full([GROUP_ROWS], 1.0, tl.float32)
        if QUANTISED:
            queries, units = in_units(queries, PRODUCT_TYPE, INTERPRETED)
        slope = tl.zeros([GROUP_ROWS], tl.float32)
        if HAS_ALIBI:
            slope = tl.load(slopes + heads, mask=member < GROUP, other=0.0)
        highest, total, weighted = attend_segment(
            queries,
            units,
            slope,
            cache,
            kv_scales,
            block_tables + row.to(tl.int64) * table_stride,
            head,
            (first_tile + tile) * TILE,
            (first_tile + stop) * TILE,
            context,
            scale,
            soft_cap,
            window,
            GROUP_ROWS,
            NUM_KV_HEADS,
            HEAD_DIM,
            HEAD_PAD,
            BLOCK_SIZE,
            TILE,
            HAS_WINDOW,
            HAS_SOFT_CAP,
            HAS_ALIBI,
            QUANTISED,
            PRODUCT_TYPE,
            INTERPRETED,
        )
        # 3. Write a whole pair; leave a part, and join the parts if this was the last to come.
        own_rows = out + token * (NUM_KV_HEADS * GROUP * HEAD_DIM)
        if stop - tile == tiles:
            store_heads(
                own_rows,
                highest,
                total,
                weighted,
                sinks,
                head,
                GROUP_ROWS,
                GROUP,
                HEAD_DIM,
                HEAD_PAD,
                HAS_SINKS,
            )
        else:
            begin = place - tile
            first_program = begin // share
            parts = (begin + tiles - 1) // share - first_program + 1
            slot = 2 * program + (place != program * share).to(tl.int32)
            cell = slot * GROUP + member
            tl.store(maxima + cell, highest, mask=member < GROUP)
            tl.store(sums + cell, total, mask=member < GROUP)
            tl.store(
                partials + cell[:, None] * HEAD_DIM + channels[None, :],
                weighted,
                mask=(member < GROUP)[:, None] & (channels < HEAD_DIM)[None, :],
            )
            # Every thread's stores come before the arrival that lets another program read them.
            tl.debug_barrier()
            arrived = tl.atomic_add(counters + first_program, 1, sem="acq_rel", scope="gpu")
            if arrived == parts - 1:
                tl.debug_barrier()
                highest_of_all, total_of_all, weighted_of_all = join_parts(
                    partials,
                    maxima,
                    sums,
                    first_program,
                    parts,
                    (begin != first_program * share).to(tl.int32),
                    GROUP,
                    GROUP_PAD,
                    HEAD_DIM,
                    HEAD_PAD,
                    PARTS,
                )
                store_heads(
                    own_rows,
                    highest_of_all,
                    total_of_all,
                    weighted_of_all,
                    sinks,
                    head,
                    GROUP_PAD,
                    GROUP,
                    HEAD_DIM,
                    HEAD_PAD,
                    HAS_SINKS,
                )
                tl.store(counters + first_program, 0)  # for the next layer's launch
        # 4. On to the next pair.
        count -= stop - tile
        place += stop - tile
        tile = 0
        head += 1
        if head == NUM_KV_HEADS:
            head = 0
            rank += 1
