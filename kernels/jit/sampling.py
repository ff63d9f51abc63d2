"""Penalties, masks, greedy choice and the plain draw: a pass over the logits, then over tiles.

A row's vocabulary is cut into tiles. ``scan_tiles`` works on one tile: it processes the logits,
and leaves the tile's highest logit with its lowest id, and, for a row that draws, how high the
tile's best token scores with its noise, roughly. ``finish_rows`` reduces these, and scores exactly
what the tiles that can hold the winner hold.

A tile whose logits change is written to ``processed`` when its row draws, since it is read again;
``heads`` says which tiles were (0, else -1). Before that, heads holds the first entry of the tile's
list of biases and forbidden tokens: the lists are sparse, and so are linked, not scattered.
"""

import triton
import triton.language as tl

from kernels.jit.philox import exact_gumbel, rough_gumbel, run_of_words, stream_of, words_of

NO_ID = tl.constexpr(0x7FFFFFFF)
ABS_MASK = tl.constexpr(0x7FFFFFFF)
INFINITY_BITS = tl.constexpr(0x7F800000)
MARGIN = tl.constexpr(1e-3)  # rough scores this close may be in the wrong order


@triton.jit
def not_finite(x):
    return (x.to(tl.int32, bitcast=True) & ABS_MASK) >= INFINITY_BITS


@triton.jit
def rounded_product(a, b, INTERPRETED: tl.constexpr):
    """a * b in float32, never fused with a sum that follows: the reference rounds both."""
    if INTERPRETED:
        return a * b
    else:
        return tl.inline_asm_elementwise(
            "mul.rn.f32 $0, $1, $2;", "=r,r,r", [a, b], dtype=tl.float32, is_pure=True, pack=1
        )


@triton.jit
def truncates(row, top_k, top_p, min_p, vocab):
    """Whether a row that draws drops tokens first."""
    does = row < 0
    if top_k is not None:
        k = tl.load(top_k + row)
        does = does | ((k > 0) & (k < vocab))
    if top_p is not None:
        does = does | (tl.load(top_p + row) < 1.0)
    if min_p is not None:
        does = does | (tl.load(min_p + row) > 0.0)
    return does


@triton.jit
def load_tile(logits_row, processed_row, head, offsets, inside):
    """Logits as processed; minus infinity outside the vocabulary."""
    if processed_row is not None:
        if tl.load(head) >= 0:
            x = tl.load(processed_row + offsets, inside, other=float("-inf"))
        else:
            x = tl.load(logits_row + offsets, inside, other=float("-inf"))
    else:
        x = tl.load(logits_row + offsets, inside, other=float("-inf"))
    return x


@triton.jit(do_not_specialize=["rows", "num_bias", "num_entries", "num_tiles"])
def link_sparse(
    bias_rows,  # [num_bias] int64; a row outside 0 .. rows - 1 is padding
    bias_ids,  # [num_bias] int64
    forbidden_rows,  # [num_entries - num_bias] int64
    forbidden_ids,  # [num_entries - num_bias] int64
    heads,  # [rows, num_tiles] int32, -1 at first
    links,  # [num_entries] int32: the next entry of the same tile, or -1
    rows,
    vocab,
    num_bias,
    num_entries,
    num_tiles,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    entry = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.full([BLOCK], -1, tl.int64)
    token = tl.full([BLOCK], -1, tl.int64)
    if bias_rows is not None:
        owned = entry < num_bias
        row = tl.load(bias_rows + entry, owned, other=-1)
        token = tl.load(bias_ids + entry, owned, other=-1)
    if forbidden_rows is not None:
        owned = (entry >= num_bias) & (entry < num_entries)
        row = tl.where(owned, tl.load(forbidden_rows + entry - num_bias, owned, other=-1), row)
        token = tl.where(owned, tl.load(forbidden_ids + entry - num_bias, owned, other=-1), token)
    valid = (row >= 0) & (row < rows) & (token >= 0) & (token < vocab)
    # The order of a list is that of arrival, and does not matter: see apply_list.
    before = tl.atomic_xchg(heads + row * num_tiles + token // TILE, entry, mask=valid)
    tl.store(links + entry, before, mask=valid)


@triton.jit
def apply_list(x, entry, offsets, links, num_bias, bias_ids, bias_values, forbidden_ids):
    """A tile's biases and forbidden tokens. A pair has one bias at most, and what is forbidden
    stays so whatever is added, so any order of the list gives the same logits."""
    while entry >= 0:
        biased = entry < num_bias
        token = tl.zeros((), tl.int64)
        value = tl.full((), float("-inf"), tl.float32)
        if bias_ids is not None:
            token += tl.load(bias_ids + entry, biased, other=0)
            value = tl.load(bias_values + entry, biased, other=float("-inf"))
        if forbidden_ids is not None:
            token += tl.load(forbidden_ids + entry - num_bias, entry >= num_bias, other=0)
        x = tl.where((offsets == token) & (x > float("-inf")), x + value, x)
        entry = tl.load(links + entry)
    return x


@triton.jit
def penalise(
    x,
    row,
    offsets,
    inside,
    presence,
    frequency,
    repetition,
    counts_row,
    prompt_row,
    INTERPRETED: tl.constexpr,
):
    count = tl.load(counts_row + offsets, inside, other=0)
    if repetition is not None:
        penalty = tl.load(repetition + row)
        seen = (count > 0) | (tl.load(prompt_row + offsets, inside, other=0) != 0)
        x = tl.where(
            seen,
            tl.where(x > 0, tl.div_rn(x, penalty), rounded_product(x, penalty, INTERPRETED)),
            x,
        )
    if frequency is not None:
        x -= rounded_product(tl.load(frequency + row), count.to(tl.float32), INTERPRETED)
    if presence is not None:
        x -= tl.where(count > 0, tl.load(presence + row), 0.0)
    return x


@triton.jit
def has_penalty(row, presence, frequency, repetition):
    has = row < 0
    if presence is not None:
        has = has | (tl.load(presence + row) != 0.0)
    if frequency is not None:
        has = has | (tl.load(frequency + row) != 0.0)
    if repetition is not None:
        has = has | (tl.load(repetition + row) != 1.0)
    return has


@triton.jit(do_not_specialize=["num_tiles", "num_bias"])
def scan_tiles(
    logits,  # [R, V] float32, rows logits_stride apart
    temperature,  # [R] float32, as the other parameters of rows
    top_k,  # [R] int32 or int64
    top_p,
    min_p,
    presence,
    frequency,
    repetition,
    key,  # [R] int64; None where no row draws
    position,  # [R] int64
    counts,  # [R, V] int32, rows counts_stride apart
    prompt_mask,  # [R, V] uint8, rows prompt_stride apart
    bitmask,  # [R, ceil(V / 32)] int32, rows bitmask_stride apart
    heads,  # [R, num_tiles] int32; None where no logit changes
    links,  # [N] int32; None without sparse lists
    bias_ids,  # [num_bias] int64
    bias_values,  # [num_bias] float32
    forbidden_ids,  # [N - num_bias] int64
    processed,  # out [R, V] float32: tiles that changed, of rows that draw
    tile_best,  # out [R, num_tiles] float32: the highest logit
    tile_id,  # out [R, num_tiles] int32: its lowest id, or -1 where something is not finite
    tile_score,  # out [R, num_tiles] float32, of rows that draw from all tokens: the highest of
    #              (logit - tile's best) / temperature + noise
    tile_mass,  # out [R, num_tiles] float32, of rows that truncate: sum of exp((logit - tile's
    #             best) / temperature)
    group_best,  # out [R, num_tiles * TILE / GROUP] float32, of rows that truncate
    vocab,
    num_tiles,
    num_bias,
    logits_stride,
    counts_stride,
    prompt_stride,
    bitmask_stride,
    TILE: tl.constexpr,
    GROUP: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    row = tl.program_id(0) // num_tiles
    tile = tl.program_id(0) % num_tiles
    place = tl.program_id(0)
    row64 = row.to(tl.int64)
    offsets = tile * TILE + tl.arange(0, TILE)
    inside = offsets < vocab
    x = tl.load(logits + row64 * logits_stride + offsets, inside, other=float("-inf"))
    bad = tl.max((inside & not_finite(x)).to(tl.int32), axis=0)
    draws = row < 0
    if key is not None:
        draws = tl.load(temperature + row) > 0.0

    if heads is not None:
        changed = has_penalty(row, presence, frequency, repetition)
        if counts is not None:  # noqa: SIM102 (settled when compiling; the next is a row's)
            if changed:
                prompt_row = None
                if prompt_mask is not None:
                    prompt_row = prompt_mask + row64 * prompt_stride
                x = penalise(
                    x,
                    row,
                    offsets,
                    inside,
                    presence,
                    frequency,
                    repetition,
                    counts + row64 * counts_stride,
                    prompt_row,
                    INTERPRETED,
                )
        if links is not None:
            head = tl.load(heads + place)
            changed = changed | (head >= 0)
            x = apply_list(x, head, offsets, links, num_bias, bias_ids, bias_values, forbidden_ids)
        if bitmask is not None:
            changed = changed | (row >= 0)
            allowed = tl.load(bitmask + row64 * bitmask_stride + offsets // 32, inside, other=0)
            x = tl.where(((allowed >> (offsets % 32)) & 1) != 0, x, float("-inf"))
        x = tl.where(inside, x, float("-inf"))
        # Minus infinity is how a token is forbidden; a NaN or an overflow is not.
        bad |= tl.max((not_finite(x) & (x != float("-inf"))).to(tl.int32), axis=0)
        tl.store(heads + place, tl.where(changed, 0, -1))
        if changed & draws:
            tl.store(processed + row64 * vocab + offsets, x, inside)

    best = tl.max(x, axis=0)
    best_id = tl.min(tl.where(x == best, offsets, NO_ID), axis=0)
    tl.store(tile_best + place, best)
    tl.store(tile_id + place, tl.where(bad != 0, -1, best_id))
    if key is not None:  # noqa: SIM102
        if draws & (bad == 0):
            shift = tl.where(best == float("-inf"), 0.0, best)
            scaled = (x - shift) / tl.load(temperature + row)
            cuts = truncates(row, top_k, top_p, min_p, vocab)
            if group_best is not None:  # noqa: SIM102
                if cuts:
                    groups = tl.max(tl.reshape(x, [TILE // GROUP, GROUP]), axis=1)
                    first = place.to(tl.int64) * (TILE // GROUP)
                    tl.store(group_best + first + tl.arange(0, TILE // GROUP), groups)
                    if top_p is not None:
                        tl.store(tile_mass + place, tl.sum(tl.exp(scaled), axis=0))
            if cuts == 0:
                stream = stream_of(key + row, position + row)
                words = run_of_words(tile * TILE, stream, TILE)
                score = tl.max(scaled + rough_gumbel(words, INTERPRETED), axis=0)
                tl.store(tile_score + place, score)


@triton.jit
def resolve_winner(rough, scaled, ids, top_rough, best, best_id, stream):
    """Scores exactly whichever tokens may win: (highest rough score, highest score, its id) so far.

    rough and scaled are minus infinity for what may not be chosen.
    """
    top_rough = tl.maximum(top_rough, tl.max(rough, axis=0))
    open_ = (rough >= top_rough - MARGIN) & (rough > float("-inf"))
    count = tl.sum(open_.to(tl.int32), axis=0)
    while count > 0:
        token = tl.min(tl.where(open_, ids, NO_ID), axis=0)
        value = tl.max(tl.where(open_ & (ids == token), scaled, float("-inf")), axis=0)
        word = words_of(token, stream)
        score = value + exact_gumbel(word)
        better = (score > best) | ((score == best) & (token < best_id))
        best = tl.where(better, score, best)
        best_id = tl.where(better, token, best_id)
        open_ = open_ & (ids != token)
        count -= 1
    return top_rough, best, best_id


@triton.jit(do_not_specialize=["num_tiles"])
def finish_rows(
    logits,  # [R, V] float32, rows logits_stride apart
    processed,  # [R, V] float32, or None
    heads,  # [R, num_tiles] int32, or None
    temperature,  # [R]
    top_k,
    top_p,
    min_p,
    key,
    position,
    tile_best,  # [R, num_tiles], as the next two
    tile_id,
    tile_score,
    row_best,  # out [R] float32: the highest logit, infinite where the row is not finite
    token_ids,  # out [R] int64; of rows that truncate, to be replaced
    non_finite,  # out [R] uint8
    vocab,
    num_tiles,
    logits_stride,
    TILE: tl.constexpr,
    TILES: tl.constexpr,  # num_tiles up to a power of two
    STEP: tl.constexpr,  # tokens scored at once; divides TILE
    INTERPRETED: tl.constexpr,
):
    row = tl.program_id(0)
    row64 = row.to(tl.int64)
    tiles = tl.arange(0, TILES)
    there = tiles < num_tiles
    bests = tl.load(tile_best + row64 * num_tiles + tiles, there, other=float("-inf"))
    ids = tl.load(tile_id + row64 * num_tiles + tiles, there, other=NO_ID)
    best = tl.max(bests, axis=0)
    bad = (tl.min(ids, axis=0) < 0) | not_finite(best)
    row_temperature = tl.load(temperature + row)
    token = tl.min(tl.where((bests == best) & there, ids, NO_ID), axis=0)
    if key is None:
        bad = bad | (row_temperature > 0.0)  # a draw needs a key: an answer would be a wrong one
    else:
        draws = (row_temperature > 0.0) & (bad == 0)
        if draws & (truncates(row, top_k, top_p, min_p, vocab) == 0):
            stream = stream_of(key + row, position + row)
            scores = tl.load(tile_score + row64 * num_tiles + tiles, there, other=float("-inf"))
            scores = tl.where(there, (bests - best) / row_temperature + scores, float("-inf"))
            open_ = scores >= tl.max(scores, axis=0) - MARGIN
            count = tl.sum(open_.to(tl.int32), axis=0)
            top_rough = tl.full((), float("-inf"), tl.float32)
            score = top_rough
            logits_row = logits + row64 * logits_stride
            processed_row = None
            heads_row = None
            if processed is not None:
                processed_row = processed + row64 * vocab
                heads_row = heads + row64 * num_tiles
            while count > 0:
                tile = tl.min(tl.where(open_, tiles, TILES), axis=0)
                open_ = open_ & (tiles != tile)
                count -= 1
                head = None
                if processed is not None:
                    head = heads_row + tile
                for start in range(0, TILE, STEP):
                    offsets = tile * TILE + start + tl.arange(0, STEP)
                    x = load_tile(logits_row, processed_row, head, offsets, offsets < vocab)
                    scaled = tl.div_rn(x - best, row_temperature)
                    words = run_of_words(tile * TILE + start, stream, STEP)
                    top_rough, score, token = resolve_winner(
                        scaled + rough_gumbel(words, INTERPRETED),
                        scaled,
                        offsets,
                        top_rough,
                        score,
                        token,
                        stream,
                    )
    tl.store(row_best + row, tl.where(bad, float("inf"), best))
    tl.store(token_ids + row, tl.where(bad, 0, token).to(tl.int64))
    tl.store(non_finite + row, bad.to(tl.uint8))
