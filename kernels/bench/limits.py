"""The two limits of a GPU, measured: how fast it copies, and how fast it multiplies."""

from __future__ import annotations

from statistics import median

import torch

from kernels.bench.row import Limits
from kernels.bench.timing import Timer

COPY_BYTES = 1 << 30
PRODUCT_SIZE = 8192


def measure_limits(
    device: torch.device, timer: Timer, *, copy_bytes: int = COPY_BYTES, size: int = PRODUCT_SIZE
) -> Limits:
    """A device-to-device copy, bytes read and written; a bfloat16 product of random numbers."""
    source = torch.empty(copy_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    left = torch.randn(size, size, dtype=torch.bfloat16, device=device)
    right = torch.randn(size, size, dtype=torch.bfloat16, device=device)
    product = torch.empty_like(left)
    samples = timer.measure(
        {
            "copy": timer.ready([lambda: target.copy_(source)], True),
            "product": timer.ready([lambda: torch.mm(left, right, out=product)], True),
        },
        seconds=2.0,
    )
    return Limits(
        copy=2 * copy_bytes / (median(samples["copy"]) * 1e-6),
        product=2 * size**3 / (median(samples["product"]) * 1e-6),
    )
