"""Normalisation on a CPU."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def _total(x: Tensor, residual: Tensor | None) -> Tensor:
    return x if residual is None else x + residual


def add_rms_norm(
    x: Tensor, residual: Tensor | None, weight: Tensor, epsilon: float
) -> tuple[Tensor, Tensor]:
    total = _total(x, residual)
    values = total.float()
    square = values.pow(2).mean(dim=-1, keepdim=True)
    normed = values * square.add_(epsilon).rsqrt_()
    return normed.mul_(weight).to(x.dtype), total


def add_layer_norm(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, epsilon: float
) -> tuple[Tensor, Tensor]:
    total = _total(x, residual)
    normed = F.layer_norm(total.float(), (x.shape[1],), weight.float(), bias.float(), epsilon)
    return normed.to(x.dtype), total
