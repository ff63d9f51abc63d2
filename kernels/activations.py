"""Activation functions, alone and gated."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from kernels.checks import FLOATS, check_dtype, check_shape
from kernels.dispatch import select

KINDS = ("silu", "gelu_tanh", "gelu_erf", "relu")


def _check(x: Tensor, kind: str) -> None:
    check_shape("x", x, (None, None))
    check_dtype("x", x, FLOATS)
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; it must be one of {', '.join(KINDS)}")


def activation(x: Tensor, kind: str) -> Tensor:
    """The activation of every element of x [T, I], in float32, rounded once to x's dtype."""
    _check(x, kind)
    run: Callable[..., Tensor] = select("activation", x.device)
    return run(x, kind)


def gated_activation(x: Tensor, kind: str) -> Tensor:
    """act(first half) * second half: x [T, 2I] to [T, I] in x's dtype, float32 inside.

    A gated MLP (Shazeer 2020, arXiv 2002.05202): x is gate and up side by side.
    """
    _check(x, kind)
    if x.shape[1] % 2:
        raise ValueError(f"x has {x.shape[1]} columns; it must have an even number")
    run: Callable[..., Tensor] = select("gated_activation", x.device)
    return run(x, kind)
