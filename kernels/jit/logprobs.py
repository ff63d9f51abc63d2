"""Log-probabilities of given tokens and of the likeliest, by tiles of the vocabulary.

``scan_logprobs`` leaves each tile's highest logit, its sum of exponentials and its likeliest few,
which ``merge_logprobs`` reduces. Many are found by a general path instead: one after the other,
each the best of the whole row that comes after the last in the order of (logit falling, id
rising). A NaN ranks as minus infinity, so that ids are always within the vocabulary.
"""

import triton
import triton.language as tl

NO_ID = tl.constexpr(0x7FFFFFFF)


@triton.jit
def comes_after(x, ids, value, token):
    """Whether (x, ids) rank behind (value, token)."""
    return (x < value) | ((x == value) & (ids > token))


@triton.jit
def best_after(x, ids, inside, value, token):
    """The best of what ranks behind (value, token): its logit and id, NO_ID where nothing does."""
    left = inside & comes_after(x, ids, value, token)
    best = tl.max(tl.where(left, x, float("-inf")), axis=0)
    return best, tl.min(tl.where(left & (x == best), ids, NO_ID), axis=0)


@triton.jit
def load_ranked(logits_row, offsets, inside):
    x = tl.load(logits_row + offsets, inside, other=float("-inf"))
    return tl.where(x == x, x, float("-inf"))


@triton.jit(do_not_specialize=["num_tiles", "num_top"])
def scan_logprobs(
    logits,  # [R, V] float32, rows logits_stride apart
    tile_best,  # out [R, num_tiles] float32
    tile_sum,  # out [R, num_tiles] float32: of exp(logit - tile's best)
    top_values,  # out [R, num_tiles, num_top] float32
    top_ids,  # out [R, num_tiles, num_top] int32; NO_ID where a tile has no more
    vocab,
    num_tiles,
    num_top,
    logits_stride,
    TILE: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64)
    row = place // num_tiles
    tile = (place % num_tiles).to(tl.int32)
    offsets = tile * TILE + tl.arange(0, TILE)
    inside = offsets < vocab
    raw = tl.load(logits + row * logits_stride + offsets, inside, other=float("-inf"))
    x = tl.where(raw == raw, raw, float("-inf"))
    best = tl.max(x, axis=0)
    shift = tl.where(best == float("-inf"), 0.0, best)
    total = tl.sum(tl.where(inside, tl.exp(raw - shift), 0.0), axis=0)
    tl.store(tile_best + place, best)
    tl.store(tile_sum + place, total)
    value = tl.full((), float("inf"), tl.float32)
    token = tl.full((), -1, tl.int32)
    for i in range(0, num_top):
        value, token = best_after(x, offsets, inside, value, token)
        tl.store(top_values + place * num_top + i, value)
        tl.store(top_ids + place * num_top + i, token)


@triton.jit
def log_sum(tile_best, tile_sum, row, num_tiles, TILES: tl.constexpr):
    """Highest logit of a row, and the logarithm of its sum of exponentials relative to that."""
    tiles = tl.arange(0, TILES)
    there = tiles < num_tiles
    bests = tl.load(tile_best + row * num_tiles + tiles, there, other=float("-inf"))
    sums = tl.load(tile_sum + row * num_tiles + tiles, there, other=0.0)
    best = tl.max(bests, axis=0)
    scaled = tl.where(bests > float("-inf"), sums * tl.exp(bests - best), sums - sums)
    return best, tl.log(tl.sum(scaled, axis=0))


@triton.jit(do_not_specialize=["num_tiles", "num_top"])
def merge_logprobs(
    logits,  # [R, V] float32, rows logits_stride apart
    token_ids,  # [R] int32 or int64
    tile_best,
    tile_sum,
    top_values,  # [R, num_tiles, num_top]
    top_ids,
    ids,  # out [R, 1 + num_top] int32
    logprobs,  # out [R, 1 + num_top] float32
    vocab,
    num_tiles,
    num_top,
    logits_stride,
    TILES: tl.constexpr,  # num_tiles up to a power of two
    WIDTH: tl.constexpr,  # num_tiles * num_top up to a power of two; 0 without top_values
    STEP: tl.constexpr,  # tokens ranked at once without them
):
    row = tl.program_id(0).to(tl.int64)
    best, log_total = log_sum(tile_best, tile_sum, row, num_tiles, TILES)
    out = row * (1 + num_top)
    token = tl.load(token_ids + row).to(tl.int32)
    inside = (token >= 0) & (token < vocab)
    chosen = tl.load(logits + row * logits_stride + token, inside, other=float("nan"))
    tl.store(ids + out, token)
    tl.store(logprobs + out, chosen - best - log_total)
    value = tl.full((), float("inf"), tl.float32)
    last = tl.full((), -1, tl.int32)
    if WIDTH > 0:
        places = tl.arange(0, WIDTH)
        held = places < num_tiles * num_top
        start = row * num_tiles * num_top
        candidates = tl.load(top_values + start + places, held, other=float("-inf"))
        candidate_ids = tl.load(top_ids + start + places, held, other=NO_ID)
        held = held & (candidate_ids < NO_ID)
        for i in range(0, num_top):
            value, last = best_after(candidates, candidate_ids, held, value, last)
            tl.store(ids + out + 1 + i, last)
            tl.store(logprobs + out + 1 + i, value - best - log_total)
    else:
        for i in range(0, num_top):
            found = tl.full((), float("-inf"), tl.float32)
            found_id = tl.full((), NO_ID, tl.int32)
            for first in range(0, vocab, STEP):
                offsets = first + tl.arange(0, STEP)
                x = load_ranked(logits + row * logits_stride, offsets, offsets < vocab)
                next_value, next_id = best_after(x, offsets, offsets < vocab, value, last)
                # Ids rise from step to step: a later equal ranks behind, but for a first -inf.
                better = (next_id < NO_ID) & ((next_value > found) | (found_id == NO_ID))
                found = tl.where(better, next_value, found)
                found_id = tl.where(better, next_id, found_id)
            value, last = found, found_id
            tl.store(ids + out + 1 + i, last)
            tl.store(logprobs + out + 1 + i, value - best - log_total)
