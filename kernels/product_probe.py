"""``python -m kernels.product_probe bfloat16``: times 16-bit products beside float32's on a CPU.

A process of its own prints one line of JSON: [[rows, seconds in float32, seconds in 16 bits], ...].
Who plans a server asks for it before torch is loaded there (server.startup.dtype_choice). One
thread, and its own processor time: what else runs on the machine then changes the ratio little.
"""

from __future__ import annotations

import json
import sys
import time

import torch
from torch import Tensor

from kernels.cpu.linear import linear

ROWS = (16, 256)  # users who decode together, and a piece of a prompt
WIDTH = 1024  # of a square weight
MOST_SECONDS = 0.08  # for each number of rows, once both forms have been met
LEAST_ROUNDS = 2


def measure(dtype: torch.dtype, rows: int) -> tuple[float, float]:
    """The least seconds of a product in float32 and in ``dtype``, taken in turns."""
    weight, x = torch.randn(WIDTH, WIDTH), torch.randn(rows, WIDTH)
    pairs = [(x, weight), (x.to(dtype), weight.to(dtype))]
    least = [float("inf")] * len(pairs)
    for pair in pairs:
        _seconds(*pair)  # a library prepares a form when it first meets it
    until, rounds = time.thread_time() + MOST_SECONDS, 0
    while rounds < LEAST_ROUNDS or time.thread_time() < until:
        rounds += 1
        least = [min(best, _seconds(*pair)) for best, pair in zip(least, pairs, strict=True)]
    return least[0], least[1]


def _seconds(x: Tensor, weight: Tensor) -> float:
    started = time.thread_time()
    linear(x, weight, None, None)
    return time.thread_time() - started


def main(arguments: list[str]) -> int:
    (name,) = arguments
    dtypes = {"bfloat16": torch.bfloat16, "float16": torch.float16}
    torch.set_num_threads(1)
    print(json.dumps([(rows, *measure(dtypes[name], rows)) for rows in ROWS]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
