"""Tables, norms and activations, native: the calls, and each by itself."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from kernels.cpu.native import structs
from kernels.cpu.native.linear import number_format
from kernels.cpu.native.program import FORMATS, address, all_float32, of_tokens, run_once
from kernels.linears import LinearWeight

KINDS = {"silu": 0, "gelu_tanh": 1, "gelu_erf": 2, "relu": 3, "relu2": 4}
XIELU = 5


def embedding_call(
    table: Tensor | LinearWeight,
    out: Tensor,
    *,
    of_positions: bool = False,
    added: Tensor | None = None,
    scale: float = 1.0,
) -> structs.Embedding:
    """Rows of ``table``, of the step's ids or positions, times ``scale``, and ``added``."""
    if isinstance(table, LinearWeight):
        weight, (rows, width), format = table.weight, table.shape, number_format(table)
    else:
        weight, (rows, width), format = table, table.shape, FORMATS[table.dtype]
    packed = isinstance(table, LinearWeight)
    return structs.Embedding(
        address(weight),
        address(added),
        address(out),
        rows,
        width,
        scale,
        format,
        packed,
        of_positions,
    )


def norm_call(
    x: Tensor,
    out: Tensor,
    *,
    residual: Tensor | None = None,
    total: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    epsilon: float,
    heads: int = 1,
    centred: bool,
) -> structs.Norm:
    """``weight`` and ``bias`` are float32, with what is added to them. x may be strided from row to
    row."""
    own = any(one is not None and one.dim() == 2 for one in (weight, bias))
    return structs.Norm(
        address(x),
        address(residual),
        None,
        address(total),
        address(out),
        address(weight),
        address(bias),
        x.stride(0),
        out.shape[1],
        epsilon,
        heads,
        centred,
        own,
    )


def activation_call(
    x: Tensor,
    out: Tensor,
    kind: str,
    *,
    other: Tensor | None = None,
    numbers: tuple[float, ...] = (),
) -> structs.Activation:
    """``activation(x) (* other)``: [T, width], both maybe strided from row to row."""
    return structs.Activation(
        address(x),
        address(other),
        address(out),
        x.stride(0),
        0 if other is None else other.stride(0),
        out.shape[1],
        (ctypes.c_float * 4)(*numbers),
        XIELU if numbers else KINDS[kind],
    )


def embedding(
    token_ids: Tensor,
    table: Tensor | LinearWeight,
    positions: Tensor | None,
    position_table: Tensor | None,
) -> Tensor:
    """As kernels.embedding; in float32, whatever the tables have."""
    ids = token_ids.to(torch.int64).contiguous()
    rows, width = table.shape
    _check_ids("token_ids", ids, rows)
    out = torch.empty(ids.shape[0], width)
    step = structs.Step(tokens=ids.shape[0], token_ids=address(ids))
    run_once(embedding_call(table, out), step)
    if positions is None or position_table is None:
        return out
    at = positions.to(torch.int64).contiguous()
    _check_ids("positions", at, position_table.shape[0])
    step = structs.Step(tokens=at.shape[0], positions=address(at))
    run_once(embedding_call(position_table, out, of_positions=True, added=out), step)
    return out


def _check_ids(name: str, ids: Tensor, rows: int) -> None:
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < rows:
        raise IndexError(f"{name} has one outside of the table's {rows} rows")


def add_rms_norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    epsilon: float,
    weight_offset: float,
) -> tuple[Tensor, Tensor]:
    return _norm(x, residual, weight, None, epsilon, weight_offset, 1, centred=False)


def add_layer_norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    epsilon: float,
    weight_offset: float,
    heads: int,
) -> tuple[Tensor, Tensor]:
    return _norm(x, residual, weight, bias, epsilon, weight_offset, heads, centred=True)


def _norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    epsilon: float,
    weight_offset: float,
    heads: int,
    *,
    centred: bool,
) -> tuple[Tensor, Tensor]:
    x = x if x.stride(-1) == 1 else x.contiguous()
    residual = None if residual is None else residual.contiguous()
    all_float32((("x", x), ("residual", residual)))
    factor = None if weight is None else weight.float().add(weight_offset).contiguous()
    shift = None if bias is None else bias.float().contiguous()
    out = torch.empty(x.shape)
    total = x if residual is None else torch.empty(x.shape)
    call = norm_call(
        x,
        out,
        residual=residual,
        total=total,
        weight=factor,
        bias=shift,
        epsilon=epsilon,
        heads=heads,
        centred=centred,
    )
    run_once(call, of_tokens(x.shape[0]))
    return out, total


def activation(x: Tensor, kind: str) -> Tensor:
    all_float32((("x", x),))
    out = torch.empty(x.shape)
    run_once(activation_call(x, out, kind), of_tokens(x.shape[0]))
    return out


def gated_activation(x: Tensor, kind: str) -> Tensor:
    all_float32((("x", x),))
    gate, up = x.chunk(2, dim=1)
    out = torch.empty(gate.shape)
    run_once(activation_call(gate, out, kind, other=up), of_tokens(x.shape[0]))
    return out


def xielu(x: Tensor, alpha_p: Tensor, alpha_n: Tensor, beta: Tensor, epsilon: Tensor) -> Tensor:
    all_float32((("x", x),))
    numbers = tuple(float(one) for one in (alpha_p, alpha_n, beta, epsilon))
    out = torch.empty(x.shape)
    run_once(activation_call(x, out, "xielu", numbers=numbers), of_tokens(x.shape[0]))
    return out
