"""Rows of choosing tokens."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import cast

import torch
from torch import Tensor

from kernels.backends import TRITON_CUDA
from kernels.bench.paged import flashinfer_package
from kernels.bench.row import Call, Contender, Goal, Limit, Row
from kernels.types import SamplingTensors

TEMPERATURE = 0.8
TOP_K = 50
TOP_P = 0.9
SPREAD = 3.0  # of the logits: about what a language model's have
FULL = (
    ("greedy", 128, 131072, Goal(microseconds=35)),
    ("temperature", 128, 131072, Goal(microseconds=35)),
    ("top-k top-p", 128, 131072, Goal(microseconds=200)),
    ("temperature", 1, 131072, Goal(microseconds=15)),
    ("top-k top-p", 1, 131072, Goal()),
)
TINY = (
    ("greedy", 2, 300, Goal()),
    ("temperature", 2, 300, Goal()),
    ("top-k top-p", 2, 300, Goal()),
)


def sampling_rows(tiny: bool) -> list[Row]:
    return [_row(*case) for case in (TINY if tiny else FULL)]


def _row(way: str, rows: int, vocabulary: int, goal: Goal) -> Row:
    return Row(
        number=11,
        name=f"sample {way} {rows}x{vocabulary}",
        nbytes=4 * rows * vocabulary,  # read once
        operations=rows * vocabulary,
        limit=Limit.COPY,
        goal=goal,
        contenders=(
            Contender("quire", partial(own, way, rows, vocabulary)),
            Contender("torch", partial(_torch, way, rows, vocabulary)),
            Contender("flashinfer", partial(_flashinfer, way, rows, vocabulary), captured=False),
        ),
    )


def _logits(rows: int, vocabulary: int, device: torch.device) -> Tensor:
    return SPREAD * torch.randn(rows, vocabulary, dtype=torch.float32, device=device)


def _params(way: str, rows: int, device: torch.device) -> SamplingTensors:
    if way == "greedy":
        return SamplingTensors(temperature=torch.zeros(rows, device=device))
    truncates = way == "top-k top-p"
    return SamplingTensors(
        temperature=torch.full((rows,), TEMPERATURE, device=device),
        key=torch.arange(rows, dtype=torch.int64, device=device),
        position=torch.arange(rows, dtype=torch.int64, device=device),
        top_k=torch.full((rows,), TOP_K, dtype=torch.int32, device=device) if truncates else None,
        top_p=torch.full((rows,), TOP_P, device=device) if truncates else None,
    )


def own(way: str, rows: int, vocabulary: int, device: torch.device, sets: int) -> list[Call]:
    sample = cast(Callable[..., object], TRITON_CUDA.implementation("sample"))
    params = _params(way, rows, device)
    return [partial(sample, _logits(rows, vocabulary, device), params) for _ in range(sets)]


def _torch(way: str, rows: int, vocabulary: int, device: torch.device, sets: int) -> list[Call]:
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "greedy": lambda logits: logits.argmax(dim=-1),
        "temperature": lambda logits: _draw((logits / TEMPERATURE).softmax(dim=-1)),
        "top-k top-p": _sorted_draw,
    }
    return [partial(ways[way], _logits(rows, vocabulary, device)) for _ in range(sets)]


def _draw(weights: Tensor) -> Tensor:
    """A token by its weight: the smallest of exponential variables (an exponential race)."""
    return weights.div_(torch.empty_like(weights).exponential_()).argmax(dim=-1)


def _sorted_draw(logits: Tensor) -> Tensor:
    """The usual way without a kernel of one's own: sort, cut, draw, and look the token up."""
    falling, ids = (logits / TEMPERATURE).sort(dim=-1, descending=True)
    weights = falling.softmax(dim=-1)
    before = weights.cumsum(dim=-1) - weights
    ranks = torch.arange(weights.shape[1], device=weights.device)
    kept = weights.masked_fill((before >= TOP_P) | (ranks >= TOP_K), 0.0)
    return ids.gather(1, _draw(kept)[:, None])


def _flashinfer(
    way: str, rows: int, vocabulary: int, device: torch.device, sets: int
) -> list[Call]:
    if way != "top-k top-p":
        raise NotImplementedError("compared where it truncates")
    sample = flashinfer_package("flashinfer.sampling").top_k_top_p_sampling_from_logits
    return [
        partial(sample, _logits(rows, vocabulary, device) / TEMPERATURE, TOP_K, TOP_P)
        for _ in range(sets)
    ]
