"""min_p, top_k and top_p without a sort: a bound, what lies within it, and an exact search there.

A token's *key* is the integer image of how far it lies below the row's best, (logit - best) /
temperature with its sign dropped: equal values have equal keys, better tokens lower ones. What
min_p, top_k and top_p keep is always: keys below a cut, and of those at the cut the low ids.

    bound_rows       a key that no kept token lies beyond, from the best of each group of tokens:
                     k groups' bests, or groups' bests of mass p, are k tokens, or mass p
    collect_tiles    the tokens within the bound (*survivors*), mostly a few hundred
    draw_truncated   searches the cuts among the survivors and draws. Where the bound was of no use,
                     or more survived than fit, it searches the whole row: right, but slower

Masses are added as integers (2**42 is the best token's), so that no order of additions shows.
"""

import triton
import triton.language as tl

from kernels.jit.philox import rough_gumbel, stream_of, words_of
from kernels.jit.sampling import (
    ABS_MASK,
    INFINITY_BITS,
    NO_ID,
    load_tile,
    resolve_winner,
    truncates,
)

NO_KEY = tl.constexpr(0x7FFFFFFF)
LARGEST_KEY = tl.constexpr(0x7F7FFFFF)  # of a token that is allowed
UNIT = tl.constexpr(4398046511104.0)  # 2**42
UNBOUNDED = tl.constexpr(0x7FFFFFFF)  # as a number of survivors
SLACK = tl.constexpr(1.0 + 1e-4)  # more than float32 sums of masses can be wrong by
PROBES = tl.constexpr(16)  # keys probed at once by a search
BY_KEY = tl.constexpr(0)
BY_MASS = tl.constexpr(1)
BY_ID = tl.constexpr(2)


@triton.jit
def keys_of(x, best, row_temperature):
    return tl.div_rn(x - best, row_temperature).to(tl.int32, bitcast=True) & ABS_MASK


@triton.jit
def scaled_of(keys):
    return -keys.to(tl.float32, bitcast=True)


@triton.jit
def mass_of(keys):
    """Fixed point; no mass for what is forbidden."""
    return (tl.exp(scaled_of(tl.minimum(keys, INFINITY_BITS))) * UNIT).to(tl.int64)


@triton.jit
def min_p_key(row, min_p):
    """The largest key that min_p keeps: of the value log(min_p), which is taken in float64."""
    limit = tl.full((), LARGEST_KEY, tl.int32)
    if min_p is not None:
        p = tl.load(min_p + row)
        if p > 0.0:
            exact = tl.log(p.to(tl.float64))
            near = exact.to(tl.float32)
            limit = near.to(tl.int32, bitcast=True) & ABS_MASK
            if near.to(tl.float64) < exact:
                limit -= 1
    return limit


@triton.jit
def chosen_k(row, top_k, vocab):
    """top_k where it drops something, else 0."""
    k = tl.zeros((), tl.int64)
    if top_k is not None:
        k = tl.load(top_k + row).to(tl.int64)
        k = tl.where((k > 0) & (k < vocab), k, 0)
    return k


@triton.jit
def chosen_p(row, top_p):
    p = tl.full((), 1.0, tl.float32)
    if top_p is not None:
        p = tl.minimum(tl.load(top_p + row), 1.0)
    return p


@triton.jit
def drops_tokens(row, row_best, temperature, top_k, top_p, min_p, vocab):
    """Whether a row is this file's business: it draws, truncates and is finite."""
    draws = (tl.load(temperature + row) > 0.0) & (tl.load(row_best + row) < float("inf"))
    return draws & truncates(row, top_k, top_p, min_p, vocab)


@triton.jit(do_not_specialize=["num_tiles"])
def bound_rows(
    temperature,  # [R]
    top_k,
    top_p,
    min_p,
    row_best,  # [R] float32, infinite where the row is not finite
    tile_best,  # [R, num_tiles] float32
    tile_mass,  # [R, num_tiles] float32, relative to the tile's best
    group_best,  # [R, num_tiles * TILE / GROUP] float32
    limits,  # out [R] int32: no token beyond this key is kept; -1 says nothing
    survivor_counts,  # out [R] int32, zero or UNBOUNDED
    totals,  # out [R] int64, zero
    vocab,
    num_tiles,
    TILES: tl.constexpr,  # num_tiles up to a power of two
    PER_TILE: tl.constexpr,  # TILE / GROUP
):
    row = tl.program_id(0)
    row64 = row.to(tl.int64)
    if drops_tokens(row, row_best, temperature, top_k, top_p, min_p, vocab):
        row_temperature = tl.load(temperature + row)
        best = tl.load(row_best + row)
        limit = min_p_key(row, min_p)
        k = chosen_k(row, top_k, vocab)
        p = chosen_p(row, top_p)
        if (k > 0) | (p < 1.0):
            places = tl.arange(0, TILES * PER_TILE)
            there = places < num_tiles * PER_TILE
            start = group_best + row64 * num_tiles * PER_TILE
            x = tl.load(start + places, there, other=float("-inf"))
            keys = tl.where(there, keys_of(x, best, row_temperature), NO_KEY)
            weights = tl.where(there, 1.0, 0.0)
            target = k.to(tl.float32)
            if k == 0:
                tiles = tl.arange(0, TILES)
                held = tiles < num_tiles
                bests = tl.load(tile_best + row64 * num_tiles + tiles, held, other=float("-inf"))
                target = tl.zeros((), tl.float32)
                if tile_mass is not None:
                    masses = tl.load(tile_mass + row64 * num_tiles + tiles, held, other=0.0)
                    masses *= tl.exp((bests - best) / row_temperature)
                    target = tl.sum(tl.where(bests > float("-inf"), masses, 0.0), axis=0)
                target *= p * SLACK
                weights = tl.where(there, tl.exp(scaled_of(keys)), 0.0)
            low = tl.zeros((), tl.int32)
            for step in range(0, 16):  # the lower half of the key is left open
                half = 1 << (30 - step)
                reached = tl.sum(tl.where(keys < low + half, weights, 0.0), axis=0)
                low = tl.where(reached < target, low + half, low)
            low += 0x7FFF
            if low < INFINITY_BITS:
                limit = tl.minimum(limit, low)
            elif limit == LARGEST_KEY:
                limit = tl.full((), -1, tl.int32)
        tl.store(limits + row, limit)
        tl.store(survivor_counts + row, tl.where(limit < 0, UNBOUNDED, 0))
        tl.store(totals + row, tl.zeros((), tl.int64))


@triton.jit(do_not_specialize=["num_tiles"])
def collect_tiles(
    logits,  # [R, V] float32, rows logits_stride apart
    processed,  # [R, V] float32, or None
    heads,  # [R, num_tiles] int32, or None
    temperature,
    top_k,
    top_p,
    min_p,
    row_best,
    limits,  # [R] int32
    survivor_counts,  # in and out [R] int32: may come to exceed CAPACITY
    survivor_keys,  # out [R, CAPACITY] int32, in any order
    survivor_ids,  # out [R, CAPACITY] int32
    totals,  # out [R] int64: the mass that min_p keeps, where top_p is not of top_k's
    vocab,
    num_tiles,
    logits_stride,
    TILE: tl.constexpr,
    CAPACITY: tl.constexpr,
):
    row = tl.program_id(0) // num_tiles
    tile = tl.program_id(0) % num_tiles
    row64 = row.to(tl.int64)
    if drops_tokens(row, row_best, temperature, top_k, top_p, min_p, vocab):
        limit = tl.load(limits + row)
        if limit >= 0:
            offsets = tile * TILE + tl.arange(0, TILE)
            inside = offsets < vocab
            processed_row = processed
            head = None
            if processed is not None:
                processed_row = processed + row64 * vocab
                head = heads + row64 * num_tiles + tile
            x = load_tile(logits + row64 * logits_stride, processed_row, head, offsets, inside)
            keys = keys_of(x, tl.load(row_best + row), tl.load(temperature + row))
            keep = inside & (keys <= limit)
            count = tl.sum(keep.to(tl.int32), axis=0)
            if count > 0:
                first = tl.atomic_add(survivor_counts + row, count)
                place = first + tl.cumsum(keep.to(tl.int32), axis=0) - 1
                keep = keep & (place < CAPACITY)
                tl.store(survivor_keys + row64 * CAPACITY + place, keys, keep)
                tl.store(survivor_ids + row64 * CAPACITY + place, offsets, keep)
            if top_p is not None:  # noqa: SIM102 (settled when compiling; the next is a row's)
                if (chosen_k(row, top_k, vocab) == 0) & (chosen_p(row, top_p) < 1.0):
                    keeps = inside & (keys <= min_p_key(row, min_p))
                    mass = tl.sum(tl.where(keeps, mass_of(keys), 0), axis=0)
                    tl.atomic_add(totals + row, mass)


@triton.jit
def is_kept(keys, ids, key_cut, id_cut):
    return (keys < key_cut) | ((keys == key_cut) & (ids <= id_cut))


@triton.jit
def read_tokens(start, tokens, changed, heads, TILE: tl.constexpr, STEP: tl.constexpr):
    """Keys and ids [STEP] from ``start`` on, of the survivors or of the whole row.

    ``tokens`` is (length, whether these are survivors, their keys and ids, the row's logits, its
    best logit, its temperature). A tuple holds no None, so ``changed``, which may be None, stands
    beside it: the row's processed logits, and ``heads``.
    """
    length, compact, keys_row, ids_row, logits_row, best, row_temperature = tokens
    offsets = start + tl.arange(0, STEP)
    inside = offsets < length
    if compact:
        keys = tl.load(keys_row + offsets, inside, other=NO_KEY)
        ids = tl.load(ids_row + offsets, inside, other=NO_ID)
    else:
        head = None
        if changed is not None:
            head = heads + start // TILE
        x = load_tile(logits_row, changed, head, offsets, inside)
        keys = tl.where(inside, keys_of(x, best, row_temperature), NO_KEY)
        ids = offsets
    return keys, ids


@triton.jit
def search(
    KIND: tl.constexpr,
    target,
    key_cut,
    id_cut,
    at,
    tokens,
    changed,
    heads,
    TILE: tl.constexpr,
    STEP: tl.constexpr,
):
    """The least key (or id) up to which the kept tokens number, or weigh, ``target``.

    Sixteen are probed a pass, four bits a time. A target out of reach yields NO_KEY.
    """
    low = tl.zeros((), tl.int32)
    probes = tl.arange(0, PROBES)
    for step in range(0, 8):
        shift = tl.maximum(27 - 4 * step, 0)
        ends = low + (probes << shift) + ((1 << shift) - 1)
        reached = tl.zeros([PROBES], tl.int64)
        for start in range(0, tokens[0], STEP):
            keys, ids = read_tokens(start, tokens, changed, heads, TILE, STEP)
            kept = is_kept(keys, ids, key_cut, id_cut)
            if KIND == BY_ID:
                within = (kept & (keys == at))[:, None] & (ids[:, None] <= ends[None, :])
            else:
                within = kept[:, None] & (keys[:, None] <= ends[None, :])
            if KIND == BY_MASS:
                reached += tl.sum(tl.where(within, mass_of(keys)[:, None], 0), axis=0)
            else:
                reached += tl.sum(within.to(tl.int32), axis=0)
        below = tl.sum((reached < target).to(tl.int32), axis=0)
        # The last step has three bits left, the others four.
        low += tl.minimum(below, tl.where(step == 7, 7, 15)) << shift
    return low


@triton.jit
def cut(
    KIND: tl.constexpr,
    target,
    key_cut,
    id_cut,
    tokens,
    changed,
    heads,
    TILE: tl.constexpr,
    STEP: tl.constexpr,
):
    """The cuts after keeping only the best tokens that number, or weigh, ``target``."""
    at = search(KIND, target, key_cut, id_cut, 0, tokens, changed, heads, TILE, STEP)
    if at < INFINITY_BITS:  # else there are not so many
        less = tl.zeros((), tl.int64)
        ties = tl.zeros((), tl.int64)
        for start in range(0, tokens[0], STEP):
            keys, ids = read_tokens(start, tokens, changed, heads, TILE, STEP)
            kept = is_kept(keys, ids, key_cut, id_cut)
            if KIND == BY_MASS:
                less += tl.sum(tl.where(kept & (keys < at), mass_of(keys), 0), axis=0)
            else:
                less += tl.sum((kept & (keys < at)).to(tl.int32), axis=0)
            ties += tl.sum((kept & (keys == at)).to(tl.int32), axis=0)
        needed = target - less
        if KIND == BY_MASS:
            each = tl.maximum(mass_of(at), 1)
            needed = (needed + each - 1) // each
        if needed < ties:
            id_cut = search(BY_ID, needed, key_cut, id_cut, at, tokens, changed, heads, TILE, STEP)
        elif at != key_cut:
            id_cut = tl.full((), NO_ID, tl.int32)
        key_cut = at
    return key_cut, id_cut


@triton.jit(do_not_specialize=["num_tiles"])
def draw_truncated(
    logits,  # [R, V] float32, rows logits_stride apart
    processed,  # [R, V] float32, or None
    heads,  # [R, num_tiles] int32, or None
    temperature,
    top_k,
    top_p,
    min_p,
    key,
    position,
    row_best,
    survivor_counts,
    survivor_keys,
    survivor_ids,
    totals,
    token_ids,  # out [R] int64, of rows that truncate
    vocab,
    num_tiles,
    logits_stride,
    TILE: tl.constexpr,
    STEP: tl.constexpr,
    CAPACITY: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    row = tl.program_id(0)
    row64 = row.to(tl.int64)
    if drops_tokens(row, row_best, temperature, top_k, top_p, min_p, vocab):
        row_temperature = tl.load(temperature + row)
        best = tl.load(row_best + row)
        survivors = tl.load(survivor_counts + row)
        compact = survivors <= CAPACITY
        length = tl.where(compact, survivors, vocab)
        changed = processed
        if processed is not None:
            changed = processed + row64 * vocab
            heads += row64 * num_tiles
        tokens = (
            length,
            compact,
            survivor_keys + row64 * CAPACITY,
            survivor_ids + row64 * CAPACITY,
            logits + row64 * logits_stride,
            best,
            row_temperature,
        )
        key_cut = min_p_key(row, min_p)
        id_cut = tl.full((), NO_ID, tl.int32)
        k = chosen_k(row, top_k, vocab)
        p = chosen_p(row, top_p)
        if top_k is not None:  # noqa: SIM102
            if k > 0:
                key_cut, id_cut = cut(
                    BY_KEY, k, key_cut, id_cut, tokens, changed, heads, TILE, STEP
                )
        if top_p is not None:  # noqa: SIM102
            if p < 1.0:
                total = tl.load(totals + row)
                if (k > 0) | (compact == 0):
                    total = tl.zeros((), tl.int64)
                    for start in range(0, tokens[0], STEP):
                        keys, ids = read_tokens(start, tokens, changed, heads, TILE, STEP)
                        kept = is_kept(keys, ids, key_cut, id_cut)
                        total += tl.sum(tl.where(kept, mass_of(keys), 0), axis=0)
                target = tl.ceil(p.to(tl.float64) * total.to(tl.float64)).to(tl.int64)
                key_cut, id_cut = cut(
                    BY_MASS,
                    tl.maximum(target, 1),
                    key_cut,
                    id_cut,
                    tokens,
                    changed,
                    heads,
                    TILE,
                    STEP,
                )
        stream = stream_of(key + row, position + row)
        top_rough = tl.full((), float("-inf"), tl.float32)
        score = top_rough
        token = tl.zeros((), tl.int32)
        for start in range(0, tokens[0], STEP):
            keys, ids = read_tokens(start, tokens, changed, heads, TILE, STEP)
            kept = is_kept(keys, ids, key_cut, id_cut)
            scaled = tl.where(kept, scaled_of(keys), float("-inf"))
            words = words_of(ids, stream)
            top_rough, score, token = resolve_winner(
                scaled + rough_gumbel(words, INTERPRETED),
                scaled,
                ids,
                top_rough,
                score,
                token,
                stream,
            )
        tl.store(token_ids + row, token.to(tl.int64))
