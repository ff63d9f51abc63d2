"""Rows of what surrounds attention in a layer: norms, and the write of keys and values."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import rms_norm

from kernels.backends import TRITON_CUDA
from kernels.bench.row import Call, Contender, Goal, Limit, Row
from kernels.footprint import ceil_div
from kernels.types import HeadNorms

DTYPE = torch.bfloat16
EPSILON = 1e-6
PAGE = 64
NORM_FULL = (
    (8192, 4096, Goal(fraction=0.85)),
    (64, 4096, Goal(microseconds=3.5)),
    (1, 4096, Goal(microseconds=3.5)),
)
NORM_TINY = ((3, 64, Goal()),)
STORE_FULL = ((1, 32, 8, 128, Goal(microseconds=4.5)), (1024, 32, 8, 128, Goal(microseconds=10)))
STORE_TINY = ((3, 4, 2, 64, Goal()),)


def layer_rows(tiny: bool) -> list[Row]:
    norms, stores = (NORM_TINY, STORE_TINY) if tiny else (NORM_FULL, STORE_FULL)
    return [_norm_row(*case) for case in norms] + [_store_row(*case) for case in stores]


def _norm_row(rows: int, width: int, goal: Goal) -> Row:
    return Row(
        number=7,
        name=f"add+rmsnorm M={rows} H={width}",
        nbytes=2 * (4 * rows * width + width),  # two in, two out
        operations=4 * rows * width,
        limit=Limit.COPY,
        goal=goal,
        contenders=(
            Contender("quire", partial(own_norm, rows, width)),
            Contender("torch add, rms_norm", partial(_torch_norm, rows, width)),
        ),
    )


def _norm_inputs(rows: int, width: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    x, residual = (torch.randn(rows, width, dtype=DTYPE, device=device) for _ in range(2))
    return x, residual, torch.randn(width, dtype=DTYPE, device=device)


def own_norm(rows: int, width: int, device: torch.device, sets: int) -> list[Call]:
    norm = cast(Callable[..., object], TRITON_CUDA.implementation("add_rms_norm"))
    return [partial(norm, *_norm_inputs(rows, width, device), EPSILON, 0.0) for _ in range(sets)]


def _torch_norm(rows: int, width: int, device: torch.device, sets: int) -> list[Call]:
    def norm(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        total = x + residual
        return rms_norm(total, (width,), weight, EPSILON), total

    return [partial(norm, *_norm_inputs(rows, width, device)) for _ in range(sets)]


def _store_row(tokens: int, heads: int, kv_heads: int, head_dim: int, goal: Goal) -> Row:
    read = heads + 2 * kv_heads
    written = heads + 3 * kv_heads  # q and k in place, k and v to their slots
    return Row(
        number=8,
        name=f"qknorm+rope+store M={tokens}",
        nbytes=tokens * head_dim * (2 * (read + written) + 4),
        operations=tokens * head_dim * 10 * (heads + kv_heads),
        limit=Limit.COPY,
        goal=goal,
        contenders=(
            Contender("quire", partial(own_store, tokens, heads, kv_heads, head_dim)),
            Contender(
                "torch, six operations", partial(_torch_store, tokens, heads, kv_heads, head_dim)
            ),
        ),
    )


def _store_inputs(
    tokens: int, heads: int, kv_heads: int, head_dim: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One projection's output [T, Hq + 2 Hkv, hd], a cache, its slots, and the rotation table."""
    qkv = torch.randn(tokens, heads + 2 * kv_heads, head_dim, dtype=DTYPE, device=device)
    pages = ceil_div(tokens, PAGE)
    cache = torch.zeros(pages, 2, kv_heads, PAGE, head_dim, dtype=DTYPE, device=device)
    slots = torch.randperm(pages * PAGE, dtype=torch.int64)[:tokens].to(device)
    table = torch.randn(tokens, head_dim, dtype=torch.float32, device=device).cos()
    return qkv, cache, slots, table


def own_store(
    tokens: int, heads: int, kv_heads: int, head_dim: int, device: torch.device, sets: int
) -> list[Call]:
    store = cast(Callable[..., object], TRITON_CUDA.implementation("rotary_store_kv"))
    weight = torch.ones(head_dim, dtype=DTYPE, device=device)
    positions = torch.arange(tokens, dtype=torch.int64, device=device)
    calls: list[Call] = []
    for _ in range(sets):
        qkv, cache, slots, table = _store_inputs(tokens, heads, kv_heads, head_dim, device)
        q, k, v = torch.split(qkv, [heads, kv_heads, kv_heads], dim=1)
        norms = HeadNorms(weight, weight, EPSILON)
        calls.append(partial(store, q, k, v, cache, slots, positions, table, False, norms, None))
    return calls


def _torch_store(
    tokens: int, heads: int, kv_heads: int, head_dim: int, device: torch.device, sets: int
) -> list[Call]:
    weight = torch.ones(head_dim, dtype=DTYPE, device=device)

    def store(qkv: Tensor, cache: Tensor, slots: Tensor, table: Tensor) -> None:
        turned = rms_norm(qkv[:, : heads + kv_heads], (head_dim,), weight, EPSILON)
        low, high = turned.chunk(2, dim=2)
        cos, sin = table.to(DTYPE)[:, None].chunk(2, dim=2)
        turned = torch.cat((low * cos - high * sin, low * sin + high * cos), dim=2)
        pages, offsets = slots // PAGE, slots % PAGE
        cache[pages, 0, :, offsets] = turned[:, heads:]
        cache[pages, 1, :, offsets] = qkv[:, heads + kv_heads :]

    return [
        partial(store, *_store_inputs(tokens, heads, kv_heads, head_dim, device))
        for _ in range(sets)
    ]
