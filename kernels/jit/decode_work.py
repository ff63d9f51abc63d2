"""The work list of decode attention, built on the device.

Every (row, KV head) pair that decodes is a run of key tiles; the runs lie one after the other, and
each program takes an equal share of the whole line (stream-K; Osama et al. 2023, arXiv 2301.03598):

    pairs      | row 0 head 0 | row 0 head 1 | row 2 head 0    | row 2 head 1    |
    programs   |    0    |    1    |    2    |    3    |    4    |    5    |  6  |

so that a ragged batch is balanced to one tile, and a pair is split over as many programs as its
length asks for. A share is never below a least number of tiles, so that short work is not cut to
pieces.
"""

import triton
import triton.language as tl


@triton.jit
def row_tiles(starts, seq_lens, ids, rows, window, HAS_WINDOW: tl.constexpr, TILE: tl.constexpr):
    """Of rows ``ids``: whether they decode, their token, context, first tile and tiles."""
    there = ids < rows
    token = tl.load(starts + ids, mask=there, other=0)
    after = tl.load(starts + ids + 1, mask=there, other=0)
    context = tl.load(seq_lens + ids, mask=there, other=0)
    decodes = (after - token == 1) & (context > 0)
    first = context * 0
    if HAS_WINDOW:
        first = tl.maximum(context - window, 0) // TILE
    tiles = tl.where(decodes, (context + TILE - 1) // TILE - first, 0)
    return decodes, token, context, first, tiles


@triton.jit(do_not_specialize=["rows", "window", "programs", "least_tiles"])
def build_decode_work(
    query_start_loc,  # [rows + 1] int32
    seq_lens,  # [rows] int32
    header,  # [4] int32: tiles for each program
    program_starts,  # [programs, 4] int32: rank of the row, KV head, tile, tiles to do
    records,  # [rows, 4] int32, by rank: row, token, context, first tile
    counters,  # [programs] int32: arrivals at a split pair, zeroed
    rows,
    window,
    programs,
    least_tiles,
    NUM_KV_HEADS: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    TILE: tl.constexpr,
    ROWS: tl.constexpr,
    PROGRAMS: tl.constexpr,
):
    """Each program of this kernel finds the starts of PROGRAMS others; all of them sum all rows,
    which is cheaper than to wait for one another."""
    me = tl.program_id(0)
    offsets = tl.arange(0, ROWS)
    total = 0
    for base in range(0, rows, ROWS):
        _, _, _, _, tiles = row_tiles(
            query_start_loc, seq_lens, base + offsets, rows, window, HAS_WINDOW, TILE
        )
        total += tl.sum(tiles)
    total *= NUM_KV_HEADS
    share = tl.maximum((total + programs - 1) // programs, least_tiles)

    owned = me * PROGRAMS + tl.arange(0, PROGRAMS)
    target = owned * share
    rank = tl.zeros([PROGRAMS], tl.int32)
    head = tl.zeros([PROGRAMS], tl.int32)
    tile = tl.zeros([PROGRAMS], tl.int32)
    tiles_before = 0
    rows_before = 0
    for base in range(0, rows, ROWS):
        ids = base + offsets
        decodes, token, context, first, tiles = row_tiles(
            query_start_loc, seq_lens, ids, rows, window, HAS_WINDOW, TILE
        )
        ranks = rows_before + tl.cumsum(decodes.to(tl.int32), 0) - 1
        begin = (tiles_before + tl.cumsum(tiles, 0) - tiles) * NUM_KV_HEADS
        if (base // ROWS) % tl.num_programs(0) == me:
            record = records + ranks * 4
            tl.store(record, ids, mask=decodes)
            tl.store(record + 1, token, mask=decodes)
            tl.store(record + 2, context, mask=decodes)
            tl.store(record + 3, first, mask=decodes)
        beyond = target[:, None] - begin[None, :]
        hit = (beyond >= 0) & (beyond < (tiles * NUM_KV_HEADS)[None, :])
        length = tl.maximum(tiles, 1)[None, :]
        rank += tl.sum(tl.where(hit, ranks[None, :], 0), 1)
        head += tl.sum(tl.where(hit, beyond // length, 0), 1)
        tile += tl.sum(tl.where(hit, beyond % length, 0), 1)
        tiles_before += tl.sum(tiles)
        rows_before += tl.sum(decodes.to(tl.int32))

    there = owned < programs
    start = program_starts + owned * 4
    tl.store(start, rank, mask=there)
    tl.store(start + 1, head, mask=there)
    tl.store(start + 2, tile, mask=there)
    tl.store(start + 3, tl.minimum(tl.maximum(total - target, 0), share), mask=there)
    tl.store(counters + owned, tl.zeros([PROGRAMS], tl.int32), mask=there)
    tl.store(header, share, mask=me == 0)
