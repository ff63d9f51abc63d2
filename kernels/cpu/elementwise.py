"""Gathers and activations on a CPU."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def embedding(
    token_ids: Tensor, table: Tensor, positions: Tensor | None, position_table: Tensor | None
) -> Tensor:
    out = table.index_select(0, token_ids)
    if positions is None or position_table is None:
        return out
    return out.add_(position_table.index_select(0, positions))


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _relu2(x: Tensor) -> Tensor:
    out = torch.relu(x)  # exact, so that the square alone is rounded
    return out.mul_(out)


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu_tanh": _gelu_tanh,
    "gelu_erf": F.gelu,
    "relu": torch.relu,
    "relu2": _relu2,
}


def activation(x: Tensor, kind: str) -> Tensor:
    # torch evaluates 16-bit elements of these in float32 and rounds once.
    return FUNCTIONS[kind](x)


def gated_activation(x: Tensor, kind: str) -> Tensor:
    gate, up = x.chunk(2, dim=1)
    if x.dtype is torch.float32:
        return FUNCTIONS[kind](gate).mul_(up)
    return FUNCTIONS[kind](gate.float()).mul_(up).to(x.dtype)


def xielu(x: Tensor, alpha_p: Tensor, alpha_n: Tensor, beta: Tensor, epsilon: Tensor) -> Tensor:
    values, beta = x.float(), beta.float()
    positive, negative = F.softplus(alpha_p.float()), F.softplus(alpha_n.float()).add_(beta)
    out = torch.minimum(values, epsilon.float()).expm1_().sub_(values).mul_(negative)
    torch.where(values > 0, values.square().mul_(positive), out, out=out)
    return out.addcmul_(values, beta).to(x.dtype)


# Normalisation on a CPU.


def _total(x: Tensor, residual: Tensor | None) -> Tensor:
    return x if residual is None else x + residual


def add_rms_norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    epsilon: float,
    weight_offset: float,
) -> tuple[Tensor, Tensor]:
    total = _total(x, residual)
    values = total.float()
    square = values.pow(2).mean(dim=-1, keepdim=True)
    normed = values * square.add_(epsilon).rsqrt_()
    if weight is None:
        return normed.to(x.dtype), total
    if weight_offset:
        weight = weight.float() + weight_offset
    return normed.mul_(weight).to(x.dtype), total


def add_layer_norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    epsilon: float,
    weight_offset: float,
    heads: int,
) -> tuple[Tensor, Tensor]:
    total = _total(x, residual)
    shift = None if bias is None else bias.float()
    factor = None if weight is None else weight.float()
    if factor is not None and weight_offset:
        factor = factor + weight_offset
    width = x.shape[1] // heads
    if heads == 1:
        return F.layer_norm(total.float(), (width,), factor, shift, epsilon).to(x.dtype), total
    normed = F.layer_norm(total.float().view(-1, heads, width), (width,), None, None, epsilon)
    if factor is not None:
        normed.mul_(factor)
    if shift is not None:
        normed.add_(shift)
    return normed.view(x.shape).to(x.dtype), total
