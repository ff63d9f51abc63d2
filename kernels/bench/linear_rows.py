"""Rows of the matrix product with few rows: unquantised, and weight-only quantised."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import linear as torch_linear

from kernels.backends import TRITON_CUDA
from kernels.bench.row import Call, Contender, Goal, Limit, Row
from kernels.linears import pack_on_any_device

DTYPE = torch.bfloat16
WEIGHT_BITS = {"bf16": 16.0, "int8": 8.0, "fp8": 8.0, "int4": 4.25}  # int4 with a scale for 64
FULL = (
    (9, 1, 28672, 4096, "bf16", Goal(fraction=0.88)),
    (9, 1, 4096, 4096, "bf16", Goal(microseconds=10.5)),
    (9, 1, 128256, 4096, "bf16", Goal(fraction=0.90)),
    (9, 1, 6144, 4096, "bf16", Goal()),
    (9, 1, 4096, 14336, "bf16", Goal()),
    (9, 8, 28672, 4096, "bf16", Goal()),
    (9, 32, 28672, 4096, "bf16", Goal()),
    (9, 128, 28672, 4096, "bf16", Goal()),
    (10, 1, 8192, 8192, "int4", Goal(microseconds=20)),
    (10, 1, 8192, 8192, "int8", Goal(microseconds=21)),
    (10, 1, 8192, 8192, "fp8", Goal(microseconds=21)),
    (10, 16, 8192, 8192, "int4", Goal()),
    (10, 16, 8192, 8192, "int8", Goal()),
)
TINY = (
    (9, 1, 48, 64, "bf16", Goal(fraction=0.88)),
    (9, 5, 48, 64, "bf16", Goal()),
    (10, 1, 32, 128, "int4", Goal()),
    (10, 1, 32, 128, "int8", Goal()),
    (10, 1, 32, 128, "fp8", Goal()),
)


def linear_rows(tiny: bool) -> list[Row]:
    return [_row(*case) for case in (TINY if tiny else FULL)]


def _row(number: int, rows: int, out: int, width: int, format: str, goal: Goal) -> Row:
    weight = round(out * width * WEIGHT_BITS[format] / 8)
    return Row(
        number=number,
        name=f"linear {format} M={rows} {width}x{out}",
        nbytes=weight + 2 * rows * (width + out),
        operations=2 * rows * out * width,
        limit=Limit.COPY,
        goal=goal,
        contenders=(
            Contender("quire", partial(own, rows, out, width, format, False)),
            Contender("quire batch-invariant", partial(own, rows, out, width, format, True)),
            Contender("torch linear bf16", partial(_torch, rows, out, width)),
        ),
    )


def _weight(out: int, width: int, device: torch.device) -> Tensor:
    return torch.randn(out, width, dtype=DTYPE, device=device).mul_(width**-0.5)


def own(
    rows: int,
    out: int,
    width: int,
    format: str,
    batch_invariant: bool,
    device: torch.device,
    sets: int,
) -> list[Call]:
    linear = cast(Callable[..., Tensor], TRITON_CUDA.implementation("linear"))
    calls: list[Call] = []
    for _ in range(sets):
        weight = pack_on_any_device(
            _weight(out, width, device), format, batch_invariant=batch_invariant
        )
        x = torch.randn(rows, width, dtype=DTYPE, device=device)
        calls.append(partial(linear, x, weight, None, None))
    return calls


def _torch(rows: int, out: int, width: int, device: torch.device, sets: int) -> list[Call]:
    return [
        partial(
            torch_linear,
            torch.randn(rows, width, dtype=DTYPE, device=device),
            _weight(out, width, device),
        )
        for _ in range(sets)
    ]
