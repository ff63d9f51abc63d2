"""What families do to attention's scores, as every backend is tried with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from kernels import AttentionFeatures, alibi_slopes
from tests.kernels.attention_cases import Step

HEADS = (6, 2)  # not a power of two, so that ALiBi's slopes are those of two of them
BLOCK_SIZE = 16


def sinks(heads: int) -> Tensor:
    return torch.linspace(-3.0, 4.0, heads)


SLOPES, SINKS = alibi_slopes(HEADS[0]), sinks(HEADS[0])
CASES = {
    "window of one": AttentionFeatures(window=1),
    "window of a block": AttentionFeatures(window=BLOCK_SIZE),
    "window one past a block": AttentionFeatures(window=BLOCK_SIZE + 1),
    "window longer than the context": AttentionFeatures(window=5000),
    "soft cap": AttentionFeatures(soft_cap=5.0),
    "ALiBi": AttentionFeatures(alibi_slopes=SLOPES),
    "sinks": AttentionFeatures(sinks=SINKS),
    "window, ALiBi": AttentionFeatures(window=40, alibi_slopes=SLOPES),
    "window, soft cap": AttentionFeatures(window=33, soft_cap=5.0),
    "window, sinks": AttentionFeatures(window=33, sinks=SINKS),
    "soft cap, ALiBi": AttentionFeatures(soft_cap=5.0, alibi_slopes=SLOPES),
    "everything": AttentionFeatures(40, 5.0, SLOPES, SINKS),
}


def with_large_scores(step: Step) -> Step:
    """Queries so long that most scores are far above the cap, on both sides."""
    return replace(step, q=step.q * 16)


# Mistakes in what a layer is told: each must be noticed wherever the feature is.
MISTAKES: dict[str, tuple[str, Callable[[AttentionFeatures], AttentionFeatures]]] = {
    "window + 1": ("window one past a block", lambda f: replace(f, window=f.window + 1)),
    "slope of another head": (
        "ALiBi",
        lambda f: replace(
            f, alibi_slopes=None if f.alibi_slopes is None else f.alibi_slopes.roll(1)
        ),
    ),
    "cap off": ("soft cap", lambda f: replace(f, soft_cap=0.0)),
    "sink ignored": ("sinks", lambda f: replace(f, sinks=None)),
}
