"""Philox4x32-10 over tensors: the same bits as kernels.philox, which shows the counter's layout.

Words are held in int64. A product of two words fills all 64 bits, wraps into the sign, and keeps
its bits; what lies above bit 31 of a word is cut off once a round, after the exclusive-ors.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.philox import MULTIPLIER_0, MULTIPLIER_1, ROUNDS, SAMPLING_DOMAIN, WEYL_0, WEYL_1

MASK = 0xFFFFFFFF
CHUNK = 8192  # counters at once: some twelve int64 arrays of it stay in a core's second-level cache


def sampling_bits(keys: Tensor, positions: Tensor, blocks: Tensor) -> Tensor:
    """Random words [N, 4] int64 of N counters: token ids 4 * block .. 4 * block + 3.

    keys, positions and blocks are [N] int64.
    """
    out = torch.empty(blocks.shape[0], 4, dtype=torch.int64)
    for start in range(0, blocks.shape[0], CHUNK):
        part = slice(start, start + CHUNK)
        torch.stack(_words(keys[part], positions[part], blocks[part]), dim=1, out=out[part])
    return out


def _words(keys: Tensor, positions: Tensor, blocks: Tensor) -> tuple[Tensor, ...]:
    k0, k1 = keys & MASK, (keys >> 32) & MASK
    c0, c1 = blocks, torch.full_like(blocks, SAMPLING_DOMAIN)
    c2, c3 = positions & MASK, (positions >> 32) & MASK
    for _ in range(ROUNDS):
        product_0, product_1 = c0 * MULTIPLIER_0, c2 * MULTIPLIER_1
        c0 = (product_1 >> 32).bitwise_xor_(c1).bitwise_xor_(k0).bitwise_and_(MASK)
        c2 = (product_0 >> 32).bitwise_xor_(c3).bitwise_xor_(k1).bitwise_and_(MASK)
        c1, c3 = product_1.bitwise_and_(MASK), product_0.bitwise_and_(MASK)
        k0.add_(WEYL_0)
        k1.add_(WEYL_1)
    return c0, c1, c2, c3


def gumbel(bits: Tensor) -> Tensor:
    """-log(-log((bits + 1/2) / 2**32)) in float64, rounded to float32."""
    uniform = bits.double().add_(0.5).mul_(2.0**-32)
    return uniform.log_().neg_().log_().neg_().float()
