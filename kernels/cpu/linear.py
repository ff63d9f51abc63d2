"""The matrix product on a CPU: torch's own, in whichever form is fastest for the number of rows.

Weights stay as they were given. Four forms, chosen by shape and type alone (the numbers are in
kernels.footprint.linear); all add up in float32:

- one row: a matrix-vector product, which streams the weight at nearly the memory's speed;
- a few rows of a large float32 weight: the weight times the transposed rows, up to three times
  faster than the rows times the transposed weight;
- many rows of a 16-bit weight where the machine has no matrix unit: panels of the weight widened to
  float32, one at a time in PANEL_BYTES of scratch (measured on AVX-512 without AMX: bfloat16
  products run at half the speed of float32);
- else: the plain product. For 16-bit types it is oneDNN's, which keeps half a MiB for every pair of
  a number of rows and a weight's shape, for ever: rows are padded to few sizes (padded_rows).
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.cpu.elementwise import activation as activated
from kernels.footprint.linear import MANY_ROWS, is_transposed, padded_rows, panel_rows
from kernels.linears import DTYPES, LinearWeight, pack_on_any_device


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    rows = x.shape[0]
    if rows == 1:
        row = torch.mv(weight, x[0]) if bias is None else torch.addmv(bias, weight, x[0])
        return row.unsqueeze(0) if residual is None else row.unsqueeze(0).add_(residual)
    if x.dtype is torch.float32 and is_transposed(rows, x.shape[1], weight.shape[0]):
        out = torch.mm(weight, x.t()).t().contiguous()
        if bias is not None:
            out.add_(bias)
    elif x.dtype is torch.float32:
        out = F.linear(x, weight, bias)
    elif rows < MANY_ROWS or _has_matrix_unit():
        out = F.linear(F.pad(x, (0, 0, 0, padded_rows(rows) - rows)), weight, bias)[:rows]
    else:
        return _widened(x, weight, bias, residual)
    return out if residual is None else out.add_(residual)


def pack_linear(
    weight: Tensor, format: str, bias: Tensor | None = None, *, batch_invariant: bool = False
) -> LinearWeight:
    """As kernels.pack_linear. Raises ValueError for a format that is not plain."""
    if format not in DTYPES:
        raise ValueError(
            f"format is {format!r}; it must be one of {', '.join(DTYPES)} on a CPU: quantised"
            " weights are multiplied on a GPU only"
        )
    return pack_on_any_device(weight, format, bias, batch_invariant=batch_invariant)


def packed_linear(
    x: Tensor, weight: LinearWeight, activation: str | None, residual: Tensor | None
) -> Tensor:
    """As kernels.linear."""
    if weight.scales is not None:
        raise ValueError(f"weight is in {weight.format!r}, which is multiplied on a GPU only")
    if activation is None:
        return linear(x, weight.weight, weight.bias, residual)
    out = activated(linear(x, weight.weight, weight.bias, None), activation)
    return out if residual is None else out.add_(residual)


@cache
def _has_matrix_unit() -> bool:
    """Whether this machine multiplies 16-bit types faster than float32."""
    return bool(torch.cpu._is_amx_tile_supported())


def _widened(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    out_features, in_features = weight.shape
    step = panel_rows(in_features, out_features)
    panel = torch.empty(step, in_features)
    wide = x.float()
    out = torch.empty(x.shape[0], out_features, dtype=x.dtype)
    for start in range(0, out_features, step):
        part = slice(start, min(start + step, out_features))
        rows = panel[: part.stop - part.start].copy_(weight[part])
        product = torch.mm(wide, rows.t())
        if bias is not None:
            product.add_(bias[part])
        if residual is not None:
            product.add_(residual[:, part])
        out[:, part] = product
        del product  # else it lives on while the next one is made
    return out
