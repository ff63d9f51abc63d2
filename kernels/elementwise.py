"""What lies between the products of a layer: activations, norms, rows of the embedding tables."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from kernels.checks import (
    FLOATS,
    INTEGERS,
    check_both,
    check_contiguous,
    check_dtype,
    check_same_device,
    check_shape,
)
from kernels.dispatch import select

KINDS = ("silu", "gelu_tanh", "gelu_erf", "relu", "relu2")  # relu2 is relu(x) squared


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


def xielu(x: Tensor, alpha_p: Tensor, alpha_n: Tensor, beta: Tensor, epsilon: Tensor) -> Tensor:
    """xIELU (Huang and Schlag 2025, arXiv 2411.13010) of every element of x [T, I], in float32,
    rounded once to x's dtype. The other four are [1], as a checkpoint has them:

        softplus(alpha_p) x^2 + beta x                                            where x > 0
        (beta + softplus(alpha_n)) (exp(min(x, epsilon)) - 1 - x) + beta x         elsewhere
    """
    check_shape("x", x, (None, None))
    check_dtype("x", x, FLOATS)
    numbers = {"alpha_p": alpha_p, "alpha_n": alpha_n, "beta": beta, "epsilon": epsilon}
    for name, number in numbers.items():
        check_shape(name, number, (1,))
        check_dtype(name, number, FLOATS)
    check_same_device(x=x, **numbers)
    run: Callable[..., Tensor] = select("xielu", x.device)
    return run(x, alpha_p, alpha_n, beta, epsilon)


def _check_norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    heads: int = 1,
) -> None:
    check_shape("x", x, (None, None))
    check_dtype("x", x, FLOATS)
    if residual is not None:
        check_shape("residual", residual, tuple(x.shape))
        check_dtype("residual", residual, (x.dtype,))
    if heads < 1 or x.shape[1] % heads:
        raise ValueError(f"x has {x.shape[1]} columns; they do not divide into {heads} heads")
    given = {"weight": weight, "bias": bias}
    parameters = {name: one for name, one in given.items() if one is not None}
    own = any(parameter.dim() == 2 for parameter in parameters.values())
    width = x.shape[1] // heads
    for name, parameter in parameters.items():
        check_shape(name, parameter, (heads, width) if own else (width,))
        check_dtype(name, parameter, FLOATS)
    check_same_device(x=x, residual=residual, weight=weight, bias=bias)


def add_rms_norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    epsilon: float,
    *,
    weight_offset: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """RMSNorm (Zhang and Sennrich 2019, arXiv 1910.07467) of ``x + residual``.

    x and residual are [T, D], weight [D], None for ones; float32, bfloat16 or float16. Returns
    (normed, total), both [T, D] in x's dtype: total is the sum rounded to that dtype (x itself
    without a residual) and normed is ``total / sqrt(mean(total^2) + epsilon) * (weight_offset +
    weight)`` in float32, rounded once: families that store what is added to 1 have an offset of 1.
    Neither input is changed. Raises ValueError for a wrong argument.
    """
    _check_norm(x, residual, weight, None)
    run: Callable[..., tuple[Tensor, Tensor]] = select("add_rms_norm", x.device)
    return run(x, residual, weight, epsilon, weight_offset)


def add_layer_norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    epsilon: float,
    *,
    weight_offset: float = 0.0,
    heads: int = 1,
) -> tuple[Tensor, Tensor]:
    """LayerNorm (Ba et al. 2016, arXiv 1607.06450) of ``x + residual``; as add_rms_norm. ``weight``
    and ``bias`` are each [D], or None for a factor of 1 and a bias of 0.

    With ``heads`` a row is so many rows side by side, each normalised by itself: x is
    [T, heads D], and ``weight`` and ``bias`` are each [D] for all of them, or [heads, D].
    """
    _check_norm(x, residual, weight, bias, heads)
    run: Callable[..., tuple[Tensor, Tensor]] = select("add_layer_norm", x.device)
    return run(x, residual, weight, bias, epsilon, weight_offset, heads)


def embedding(
    token_ids: Tensor,
    table: Tensor,
    *,
    positions: Tensor | None = None,
    position_table: Tensor | None = None,
) -> Tensor:
    """``table[token_ids] (+ position_table[positions])``: [T, D] in the table's dtype.

    token_ids [T] and positions [T] are int32 or int64; table [V, D] and position_table [P, D] are
    float32, bfloat16 or float16. The sum is rounded once. Raises ValueError for a wrong argument
    and, on a CPU, IndexError for an id outside its table; on a GPU ids are trusted.
    """
    check_shape("token_ids", token_ids, (None,))
    check_dtype("token_ids", token_ids, INTEGERS)
    check_shape("table", table, (None, None))
    check_dtype("table", table, FLOATS)
    check_contiguous("table", table)
    check_both("positions", positions, "position_table", position_table)
    check_same_device(
        table=table, token_ids=token_ids, positions=positions, position_table=position_table
    )
    if positions is not None and position_table is not None:
        check_shape("positions", positions, (token_ids.shape[0],))
        check_dtype("positions", positions, INTEGERS)
        check_shape("position_table", position_table, (None, table.shape[1]))
        check_dtype("position_table", position_table, (table.dtype,))
    run: Callable[..., Tensor] = select("embedding", table.device)
    return run(token_ids, table, positions, position_table)
