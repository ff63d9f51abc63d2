"""Copies of whole blocks of the KV cache, which to these kernels are runs of integers (words)."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["pairs", "blocks"])
def move_blocks(
    cache_ptr,  # [layers, blocks, WORDS]
    sources_ptr,  # [pairs]
    destinations_ptr,  # [pairs]
    pairs,
    blocks,
    WORDS: tl.constexpr,  # of a block in one layer
    PADDED_PAIRS: tl.constexpr,  # pairs up to a power of two
    CHUNK: tl.constexpr,
):
    """Every pair's words [start, start + CHUNK) of one layer.

    One program holds them all in registers before it writes any, and no two programs share a word:
    so a block may be the source of one pair and the destination of another, without a buffer.
    """
    pair = tl.arange(0, PADDED_PAIRS)
    words = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
    inside = (pair < pairs)[:, None] & (words < WORDS)[None, :]
    source = tl.load(sources_ptr + pair, pair < pairs, other=0).to(tl.int64)
    destination = tl.load(destinations_ptr + pair, pair < pairs, other=0).to(tl.int64)
    layer_ptr = cache_ptr + tl.program_id(1).to(tl.int64) * blocks * WORDS
    held = tl.load(layer_ptr + source[:, None] * WORDS + words[None, :], inside)
    tl.debug_barrier()  # all threads have read
    tl.store(layer_ptr + destination[:, None] * WORDS + words[None, :], held, inside)


@triton.jit(do_not_specialize=["count", "blocks"])
def stage_blocks(
    cache_ptr,  # [layers, blocks, WORDS]
    ids_ptr,  # [count]
    staged_ptr,  # [layers, count, WORDS]
    count,
    blocks,
    WORDS: tl.constexpr,
    CHUNK: tl.constexpr,
    GATHER: tl.constexpr,  # from the cache; else into it
):
    CHUNKS: tl.constexpr = (WORDS + CHUNK - 1) // CHUNK
    index = tl.program_id(0) // CHUNKS
    words = tl.program_id(0) % CHUNKS * CHUNK + tl.arange(0, CHUNK)
    inside = words < WORDS
    layer = tl.program_id(1).to(tl.int64)
    block = tl.load(ids_ptr + index).to(tl.int64)
    cached = cache_ptr + (layer * blocks + block) * WORDS + words
    staged = staged_ptr + (layer * count + index) * WORDS + words
    if GATHER:
        tl.store(staged, tl.load(cached, inside), inside)
    else:
        tl.store(cached, tl.load(staged, inside), inside)
