"""Philox4x32-10 in plain Python integers: the random bits of the sampler, and keys of choices.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011. A
counter-based generator: 128 bits out of a 128-bit counter and a 64-bit key, with no state, so that
a random number is a pure function of what it is for.

How this project lays out a counter (four 32-bit words, word 0 first):

    word 0   block: token id // 4 when sampling, the choice when deriving a key
    word 1   domain: what the bits are for (SAMPLING_DOMAIN or KEY_DOMAIN)
    word 2   output position, low 32 bits
    word 3   output position, high 32 bits

A 64-bit key is (low 32 bits, high 32 bits). No torch here: the tensor version is the backend's own.
"""

from __future__ import annotations

MULTIPLIER_0 = 0xD2511F53
MULTIPLIER_1 = 0xCD9E8D57
WEYL_0 = 0x9E3779B9  # the golden ratio: added to key word 0 after each round
WEYL_1 = 0xBB67AE85  # sqrt(3) - 1: added to key word 1 after each round
ROUNDS = 10
SAMPLING_DOMAIN = 0
KEY_DOMAIN = 1

_MASK_32 = 0xFFFFFFFF
_MASK_64 = 0xFFFFFFFFFFFFFFFF


def philox_4x32(
    counter: tuple[int, int, int, int], key: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Ten rounds of Philox over 32-bit words; every word in and out is in 0 .. 2**32 - 1."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        product_0 = c0 * MULTIPLIER_0
        product_1 = c2 * MULTIPLIER_1
        c0, c1, c2, c3 = (
            (product_1 >> 32) ^ c1 ^ k0,
            product_1 & _MASK_32,
            (product_0 >> 32) ^ c3 ^ k1,
            product_0 & _MASK_32,
        )
        k0 = (k0 + WEYL_0) & _MASK_32
        k1 = (k1 + WEYL_1) & _MASK_32
    return c0, c1, c2, c3


def derive_key(seed: int, choice: int) -> int:
    """The sampling key of choice ``choice`` of a request with ``seed``: 0 .. 2**64 - 1.

    The seed is read modulo 2**64, so that a negative one is allowed. Keys of different choices
    are unrelated, and the key of choice 0 is not the seed itself.
    """
    if not 0 <= choice <= _MASK_32:
        raise ValueError(f"choice is {choice}; it must be in 0 .. 2**32 - 1")
    bits = seed & _MASK_64
    words = philox_4x32((choice, KEY_DOMAIN, 0, 0), (bits & _MASK_32, bits >> 32))
    return words[0] | (words[1] << 32)


def sampling_bits(key: int, position: int, token_id: int) -> int:
    """The 32 random bits of one (key, output position, token id)."""
    counter = (token_id // 4, SAMPLING_DOMAIN, position & _MASK_32, (position >> 32) & _MASK_32)
    bits = key & _MASK_64
    return philox_4x32(counter, (bits & _MASK_32, bits >> 32))[token_id % 4]


def as_int64(key: int) -> int:
    """The same 64 bits as a signed integer, as an int64 tensor holds them."""
    bits = key & _MASK_64
    return bits - (1 << 64) if bits >> 63 else bits
