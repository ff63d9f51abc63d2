"""Philox4x32-10 over arrays: the same bits as kernels.philox, which shows the counter's layout.

In numpy, whose unsigned 64-bit products and small calls suit it better than torch's. Words are held
in 64 bits; what lies above bit 31 is cut off once a round, after the exclusive-ors.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels.philox import MULTIPLIER_0, MULTIPLIER_1, ROUNDS, SAMPLING_DOMAIN, WEYL_0, WEYL_1

CHUNK = 8192  # counters at once: a dozen arrays of it stay in a core's second-level cache
_MASK = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)

Words = NDArray[np.uint64]


def sampling_bits(keys: Tensor, positions: Tensor, blocks: Tensor) -> Tensor:
    """Random words [N, 4] int64 of N counters: token ids 4 * block .. 4 * block + 3.

    keys, positions and blocks are [N] int64.
    """
    inputs = [tensor.numpy().view(np.uint64) for tensor in (keys, positions, blocks)]
    out = np.empty((blocks.shape[0], 4), dtype=np.uint64)
    for start in range(0, out.shape[0], CHUNK):
        part = slice(start, start + CHUNK)
        np.stack(_words(*(words[part] for words in inputs)), axis=1, out=out[part])
    return torch.from_numpy(out.view(np.int64))


def _words(keys: Words, positions: Words, blocks: Words) -> tuple[Words, Words, Words, Words]:
    k0, k1 = keys & _MASK, keys >> _HALF
    c0, c1 = blocks.copy(), np.full_like(blocks, SAMPLING_DOMAIN)
    c2, c3 = positions & _MASK, positions >> _HALF
    product_0, product_1 = np.empty_like(c0), np.empty_like(c0)
    for _ in range(ROUNDS):
        np.multiply(c0, np.uint64(MULTIPLIER_0), out=product_0)
        np.multiply(c2, np.uint64(MULTIPLIER_1), out=product_1)
        _mix(product_1, c1, k0, out=c0)
        _mix(product_0, c3, k1, out=c2)
        np.bitwise_and(product_1, _MASK, out=c1)
        np.bitwise_and(product_0, _MASK, out=c3)
        k0 += np.uint64(WEYL_0)  # what this carries above bit 31, _mix cuts off
        k1 += np.uint64(WEYL_1)
    return c0, c1, c2, c3


def _mix(product: Words, word: Words, key: Words, *, out: Words) -> None:
    """The high half of a product, xored with another word and the round's key."""
    np.right_shift(product, _HALF, out=out)
    out ^= word
    out ^= key
    out &= _MASK


def gumbel(bits: Tensor) -> Tensor:
    """-log(-log((bits + 1/2) / 2**32)) in float64, rounded to float32."""
    uniform = bits.double().add_(0.5).mul_(2.0**-32)
    return uniform.log_().neg_().log_().neg_().float()
