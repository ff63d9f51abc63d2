"""Long prompts over the paged cache, with a warp that copies beside the warps that compute.

Triton specialises warps on Hopper only for a narrow form, which this kernel keeps to: four warps
asked for; queries, keys and values by descriptors made in the kernel; one loop, with no branch in
it and no other loop or early return around it. Hence no packing of a group's heads, masks on every
tile, a search for the row that is unrolled, and programs without work that run on empty.
"""

import triton
import triton.language as tl

from kernels.jit.attention_math import first_visible, normalised, product
from kernels.jit.key_tiles import accumulate, score_factor, tile_scores, visible

SEARCH_STEPS = tl.constexpr(12)  # halvings that find one of up to 4096 rows


@triton.jit
def _find_row(starts, num_rows, tile, BLOCK_Q: tl.constexpr):
    """kernels.jit.query_tiles.find_row without a loop."""
    low = num_rows * 0
    high = num_rows
    for _ in tl.static_range(SEARCH_STEPS):
        middle = (low + high) // 2
        begins = tl.load(starts + middle) // BLOCK_Q + middle
        low = tl.where(begins <= tile, middle, low)
        high = tl.where(begins <= tile, high, middle)
    return low


@triton.jit(
    do_not_specialize=[
        "num_rows",
        "num_tiles",
        "num_tokens",
        "num_planes",
        "table_stride",
        "window",
    ]
)
def paged_prefill_specialized(
    # tensors
    out,  # [T, NUM_KV_HEADS * GROUP, HEAD_DIM], contiguous
    q,  # [T, NUM_KV_HEADS * GROUP, HEAD_DIM], a token's heads side by side
    cache,  # [num_blocks, 2, NUM_KV_HEADS, BLOCK_SIZE, HEAD_DIM]
    block_tables,  # [num_rows, table_stride] int32
    query_start_loc,  # [num_rows + 1] int32
    seq_lens,  # [num_rows] int32
    # numbers
    num_rows,
    num_tiles,
    num_tokens,
    num_planes,  # num_blocks * 2 * NUM_KV_HEADS
    table_stride,
    q_token_stride,
    scale,
    soft_cap,
    window,
    # sizes
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    STAGES: tl.constexpr,
    # what is done
    HAS_WINDOW: tl.constexpr,
    HAS_SOFT_CAP: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """A program: one query head of up to BLOCK_Q tokens of a row of two tokens or more."""
    NUM_HEADS: tl.constexpr = NUM_KV_HEADS * GROUP
    program = tl.program_id(0)
    head = program % NUM_HEADS
    kv_head = head // GROUP
    tile = num_tiles - 1 - program // NUM_HEADS
    row = _find_row(query_start_loc, num_rows, tile, BLOCK_Q)
    start = tl.load(query_start_loc + row)
    length = tl.load(query_start_loc + row + 1) - start
    context = tl.load(seq_lens + row)
    first_token = (tile - (start // BLOCK_Q + row)) * BLOCK_Q
    owned = (first_token < length) & (length > 1) & (context >= length)

    # Boxes read whole tiles: the next row's queries are not stored, stale keys are masked. Stale
    # values would join as 0 * NaN, so the boxes of values end where the context does. A plane is
    # BLOCK_SIZE slots of a head in a block, and it can be reached in two ways: from its own start,
    # all slots there, or from slot BLOCK_SIZE of the plane before it, of whose slots only as many
    # are there as the context's last block holds; a copy fills the others with zeros. The first
    # plane has none before it: hence the base, one plane early.
    held = (tl.maximum(context, 1) - 1) % BLOCK_SIZE + 1
    PLANE: tl.constexpr = BLOCK_SIZE * HEAD_DIM
    q_boxes = tl.make_tensor_descriptor(
        q,
        shape=[num_tokens, NUM_HEADS * HEAD_DIM],
        strides=[q_token_stride, 1],
        block_shape=[BLOCK_Q, HEAD_DIM],
    )
    k_boxes = tl.make_tensor_descriptor(
        cache,
        shape=[num_planes * BLOCK_SIZE, HEAD_DIM],
        strides=[HEAD_DIM, 1],
        block_shape=[BLOCK_SIZE, HEAD_DIM],
    )
    v_boxes = tl.make_tensor_descriptor(
        cache - PLANE,
        shape=[num_planes + 1, BLOCK_SIZE + held, HEAD_DIM],
        strides=[PLANE, HEAD_DIM, 1],
        block_shape=[1, BLOCK_SIZE, HEAD_DIM],
    )
    q_tile = q_boxes.load([start + first_token, head * HEAD_DIM])
    if INTERPRETED:
        q_tile = q_tile.to(tl.float32)

    tokens = first_token + tl.arange(0, BLOCK_Q)
    first_query = context - length + first_token
    last_query = context - length + tl.minimum(first_token + BLOCK_Q, length) - 1
    positions = context - length + tokens
    low = first_visible(first_query, window, HAS_WINDOW) // BLOCK_SIZE
    high = tl.where(owned, last_query // BLOCK_SIZE + 1, low)
    table = block_tables + row.to(tl.int64) * table_stride
    factor = score_factor(scale, HAS_SOFT_CAP, False)
    highest = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_Q], tl.float32)
    weighted = tl.zeros([BLOCK_Q, HEAD_DIM], tl.float32)
    for index in tl.range(low, high, num_stages=STAGES, warp_specialize=True):
        plane = tl.load(table + index) * (2 * NUM_KV_HEADS) + kv_head
        tail = ((index + 1) * BLOCK_SIZE > context).to(tl.int32)
        keys = index * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
        k = k_boxes.load([plane * BLOCK_SIZE, 0])
        v = v_boxes.load([plane + NUM_KV_HEADS + 1 - tail, tail * BLOCK_SIZE, 0])
        v = v.reshape(BLOCK_SIZE, HEAD_DIM)
        if INTERPRETED:
            v = v.to(tl.float32)
        products = product(q_tile, tl.trans(k), INTERPRETED)
        scores = tile_scores(products, scale, soft_cap, scale, positions, keys, HAS_SOFT_CAP, False)
        seen = visible(positions, keys, context, window, True, HAS_WINDOW)
        scores = tl.where(seen, scores, float("-inf"))
        highest, total, weighted = accumulate(
            scores, factor, v, keys, highest, total, weighted, False, INTERPRETED
        )
    result = normalised(weighted, total).to(out.dtype.element_ty)
    lines = (start + tokens).to(tl.int64)[:, None] * (NUM_HEADS * HEAD_DIM)
    places = lines + head * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :]
    tl.store(out + places, result, mask=(owned & (tokens < length))[:, None])
