"""What the kernels with many queries share: which queries a program has, loading and storing them.

A tile of queries is BLOCK_M lanes: lane m is token ``m // GROUP`` of the tile and query head
``m % GROUP`` of the tile's KV head, so that a group shares each tile of keys and the tensor cores
see many lanes for few tokens. Lanes past ``BLOCK_M // GROUP`` tokens, or past the row's last token,
compute something finite that is not stored.
"""

import triton
import triton.language as tl

from kernels.jit.attention_math import normalised, with_sinks


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
def tile_of_program(
    starts,
    num_rows,
    num_tiles,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """What this program works on: (row, its first token, its tokens, the first and the last token
    of the tile within the row, KV head, first query head within the group).

    Programs run from the last tile to the first: within a row those with the most keys go first. A
    group of more heads than lanes is cut into parts, each with its own programs. There is nothing
    to do where the first token is not below the row's tokens.
    """
    HEADS: tl.constexpr = GROUP if GROUP < BLOCK_M else BLOCK_M
    PARTS: tl.constexpr = (GROUP + HEADS - 1) // HEADS
    BLOCK_Q: tl.constexpr = BLOCK_M // HEADS
    program = tl.program_id(0)
    head = program % (NUM_KV_HEADS * PARTS) // PARTS
    tile = num_tiles - 1 - program // (NUM_KV_HEADS * PARTS)
    row = find_row(starts, num_rows, tile, BLOCK_Q)
    start = tl.load(starts + row)
    length = tl.load(starts + row + 1) - start
    first = (tile - (start // BLOCK_Q + row)) * BLOCK_Q
    last = tl.minimum(first + BLOCK_Q, length) - 1
    return row, start, length, first, last, head, program % PARTS * HEADS


@triton.jit
def load_queries(
    q,
    token_stride,
    head_stride,
    alibi_slopes,
    start,
    length,
    first,
    head,
    member,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_PAD: tl.constexpr,
    BLOCK_M: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """A program's queries, as tile_of_program told it: (queries [BLOCK_M, HEAD_PAD], their tokens
    within the row, their slopes, their heads, whether they are there)."""
    HEADS: tl.constexpr = GROUP if GROUP < BLOCK_M else BLOCK_M
    lanes = tl.arange(0, BLOCK_M)
    channels = tl.arange(0, HEAD_PAD)
    tokens = first + lanes // HEADS
    members = member + lanes % HEADS
    heads = head * GROUP + members
    stored = (lanes < BLOCK_M // HEADS * HEADS) & (members < GROUP) & (tokens < length)
    tokens = tl.minimum(tokens, length - 1)
    lines = (start + tokens).to(tl.int64)[:, None]
    places = lines * token_stride + heads[:, None] * head_stride + channels[None, :]
    queries = tl.load(q + places, mask=stored[:, None] & (channels < HEAD_DIM)[None, :], other=0.0)
    if INTERPRETED:
        queries = queries.to(tl.float32)
    slopes = 0.0
    if alibi_slopes is not None:
        slopes = tl.load(alibi_slopes + heads, mask=stored, other=0.0)
    return queries, tokens, slopes, heads, stored


@triton.jit
def store_results(
    out,
    token_stride,
    sinks,
    lines,
    heads,
    stored,
    factor,
    sums,
    HEAD_DIM: tl.constexpr,
    HEAD_PAD: tl.constexpr,
):
    """The finished softmax, which sinks join, to tokens ``lines`` [BLOCK_M] of ``out``."""
    highest, total, weighted = sums
    if sinks is not None:
        logits = tl.load(sinks + heads, mask=stored, other=0.0)
        highest, total, kept = with_sinks(highest * factor, total, logits)
        weighted = weighted * kept[:, None]
    channels = tl.arange(0, HEAD_PAD)
    places = lines.to(tl.int64)[:, None] * token_stride + heads[:, None] * HEAD_DIM
    tl.store(
        out + places + channels[None, :],
        normalised(weighted, total).to(out.dtype.element_ty),
        mask=stored[:, None] & (channels < HEAD_DIM)[None, :],
    )
