"""Random bits by token id: the bits of kernels.philox, and Gumbel noise made of them.

Noise is wanted twice: roughly for a whole vocabulary, to see which tokens can win, and exactly for
the few that can. The rough noise is good to 1e-4 (see test_philox_kernel), the exact one is the
reference's: made in float64, then rounded to float32.
"""

import triton
import triton.language as tl

from kernels import philox as spec

MULTIPLIER_0 = tl.constexpr(spec.MULTIPLIER_0)
MULTIPLIER_1 = tl.constexpr(spec.MULTIPLIER_1)
WEYL_0 = tl.constexpr(spec.WEYL_0)
WEYL_1 = tl.constexpr(spec.WEYL_1)
ROUNDS = tl.constexpr(spec.ROUNDS)
SAMPLING_DOMAIN = tl.constexpr(spec.SAMPLING_DOMAIN)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def stream_of(key, position):
    """(key low, key high, position low, position high), uint32, of two pointers to int64."""
    k = tl.load(key).to(tl.uint64, bitcast=True)
    p = tl.load(position).to(tl.uint64, bitcast=True)
    return k.to(tl.uint32), (k >> 32).to(tl.uint32), p.to(tl.uint32), (p >> 32).to(tl.uint32)


@triton.jit
def philox(block, stream):
    """Four uint32 words for each ``block`` (token id // 4), of block's shape."""
    k0, k1, position_low, position_high = stream
    c0 = block.to(tl.uint32)
    c1 = tl.zeros_like(c0) + SAMPLING_DOMAIN
    c2 = tl.zeros_like(c0) + position_low
    c3 = tl.zeros_like(c0) + position_high
    for _ in tl.static_range(ROUNDS):
        # One 64-bit product is one instruction for both of its halves.
        product_0 = c0.to(tl.uint64) * MULTIPLIER_0
        product_1 = c2.to(tl.uint64) * MULTIPLIER_1
        c0 = (product_1 >> 32).to(tl.uint32) ^ c1 ^ k0
        c2 = (product_0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c1 = product_1.to(tl.uint32)
        c3 = product_0.to(tl.uint32)
        k0 = k0 + WEYL_0
        k1 = k1 + WEYL_1
    return c0, c1, c2, c3


@triton.jit
def run_of_words(first, stream, COUNT: tl.constexpr):
    """The words [COUNT] of tokens first .. first + COUNT - 1; both are multiples of four."""
    block = first // 4 + tl.arange(0, COUNT // 4)
    a, b, c, d = philox(block, stream)
    return tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), [COUNT])


@triton.jit
def words_of(token_ids, stream):
    """The word of each token, in any order."""
    a, b, c, d = philox(token_ids // 4, stream)
    lane = token_ids % 4
    return tl.where(lane < 2, tl.where(lane == 0, a, b), tl.where(lane == 2, c, d))


@triton.jit
def log2_roughly(x, INTERPRETED: tl.constexpr):
    if INTERPRETED:
        return tl.log2(x)
    else:
        return tl.inline_asm_elementwise(
            "lg2.approx.f32 $0, $1;", "=r,r", [x], dtype=tl.float32, is_pure=True, pack=1
        )


@triton.jit
def rough_gumbel(words, INTERPRETED: tl.constexpr):
    """-log(-log(u)) with u = (word + 1/2) / 2**32, in float32.

    u and 1 - u are both (n + 1/2) / 2**32 of an n below 2**31, so that neither end of (0, 1) loses
    its digits; close to u = 1 the inner logarithm is a series in 1 - u.
    """
    signed = words.to(tl.int32, bitcast=True)
    upper = signed < 0
    h = (tl.where(upper, ~signed, signed).to(tl.float32) + 0.5) * 2.3283064365386963e-10
    series = h * (1.0 + h * (0.5 + h * (0.33333334 + h * (0.25 + h * 0.2))))
    inner = -LN_2 * log2_roughly(tl.where(upper, 1.0 - h, h), INTERPRETED)
    inner = tl.where(upper & (h < 0.0625), series, inner)
    return -LN_2 * log2_roughly(inner, INTERPRETED)


@triton.jit
def exact_gumbel(words):
    """The same in float64, rounded to float32: dear, and for single tokens."""
    u = (words.to(tl.float64) + 0.5) * 2.3283064365386963e-10
    return (-tl.log(-tl.log(u))).to(tl.float32)
