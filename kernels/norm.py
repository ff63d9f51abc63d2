"""Residual addition and normalisation in one operation."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from kernels.checks import FLOATS, check_dtype, check_same_device, check_shape
from kernels.dispatch import select


def _check(x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None) -> None:
    check_shape("x", x, (None, None))
    check_dtype("x", x, FLOATS)
    if residual is not None:
        check_shape("residual", residual, tuple(x.shape))
        check_dtype("residual", residual, (x.dtype,))
    check_shape("weight", weight, (x.shape[1],))
    check_dtype("weight", weight, FLOATS)
    if bias is not None:
        check_shape("bias", bias, (x.shape[1],))
        check_dtype("bias", bias, FLOATS)
    check_same_device(x=x, residual=residual, weight=weight, bias=bias)


def add_rms_norm(
    x: Tensor, residual: Tensor | None, weight: Tensor, epsilon: float
) -> tuple[Tensor, Tensor]:
    """RMSNorm (Zhang and Sennrich 2019, arXiv 1910.07467) of ``x + residual``.

    x and residual are [T, D], weight [D]; float32, bfloat16 or float16. Returns (normed, total),
    both [T, D] in x's dtype: total is the sum rounded to that dtype (x itself without a residual)
    and normed is ``total / sqrt(mean(total^2) + epsilon) * weight`` in float32, rounded once.
    Neither input is changed. Raises ValueError for a wrong argument.
    """
    _check(x, residual, weight, None)
    run: Callable[..., tuple[Tensor, Tensor]] = select("add_rms_norm", x.device)
    return run(x, residual, weight, epsilon)


def add_layer_norm(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, epsilon: float
) -> tuple[Tensor, Tensor]:
    """LayerNorm (Ba et al. 2016, arXiv 1607.06450) of ``x + residual``; as add_rms_norm."""
    _check(x, residual, weight, bias)
    run: Callable[..., tuple[Tensor, Tensor]] = select("add_layer_norm", x.device)
    return run(x, residual, weight, bias, epsilon)
