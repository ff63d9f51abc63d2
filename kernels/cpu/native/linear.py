"""Packed weights and the matrix product with them, native."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.cpu.elementwise import activation as activated
from kernels.cpu.native import structs
from kernels.cpu.native.program import (
    FORMATS,
    address,
    all_float32,
    of_tokens,
    run_once,
    runtime,
)
from kernels.footprint.native_linear import packed_bytes, product_scratch_bytes
from kernels.linears import DTYPES, LinearWeight

INT8 = "int8"


def pack_linear(
    weight: Tensor, format: str, bias: Tensor | None = None, *, batch_invariant: bool = False
) -> LinearWeight:
    """As kernels.pack_linear; rows are float32 whatever the format. ``weight``, where it takes the
    packed bytes itself, is packed in place: it must not be used any more.

    Raises ValueError for a format that there is not on a CPU.
    """
    if format not in DTYPES and format != INT8:
        known = ", ".join((*DTYPES, INT8))
        raise ValueError(f"format is {format!r}; it must be one of {known} on a CPU")
    rows = weight if format == INT8 else weight.to(DTYPES[format])
    rows = rows.contiguous()
    channels, inputs = rows.shape
    nbytes = packed_bytes(channels, inputs, format)
    in_place = format != INT8 and nbytes == rows.nbytes
    packed = rows.view(torch.uint8).view(-1) if in_place else torch.empty(nbytes, dtype=torch.uint8)
    threads = runtime().pool.threads
    scratch = torch.empty(threads * packed_bytes(1, inputs, format), dtype=torch.uint8)
    to_format = structs.NumberFormat.INT8 if format == INT8 else FORMATS[rows.dtype]
    run_once(
        structs.Pack(
            address(rows),
            address(packed),
            address(scratch),
            channels,
            inputs,
            FORMATS[rows.dtype],
            to_format,
        ),
        of_tokens(0),
    )
    kept = None if bias is None else bias.to(DTYPES.get(format, bias.dtype)).contiguous()
    return LinearWeight(format, packed, kept, None, (channels, inputs), torch.float32)


def number_format(weight: LinearWeight) -> structs.NumberFormat:
    if weight.format == INT8:
        return structs.NumberFormat.INT8
    return FORMATS[DTYPES[weight.format]]


def linear_call(
    weight: LinearWeight,
    rows: Tensor,
    out: Tensor,
    scratch: Tensor,
    residual: Tensor | None = None,
    *,
    bias: Tensor | None,
    most: int,
) -> structs.Linear:
    """The call that multiplies up to ``most`` rows; ``scratch`` has product_scratch_bytes, and
    ``bias`` is the weight's in float32."""
    channels, inputs = weight.shape
    return structs.Linear(
        address(weight.weight),
        address(bias),
        address(rows),
        address(residual),
        address(out),
        address(scratch),
        inputs,
        channels,
        channels,
        number_format(weight),
        most,
    )


def linear(
    x: Tensor, weight: LinearWeight, activation: str | None, residual: Tensor | None
) -> Tensor:
    """As kernels.linear."""
    tokens, inputs = x.shape
    x, added = x.contiguous(), None if residual is None else residual.contiguous()
    all_float32((("x", x), ("residual", added)))
    out = torch.empty(tokens, weight.out_features)
    if not tokens:
        return out
    threads = runtime().pool.threads
    nbytes = product_scratch_bytes(tokens, inputs, weight.format, threads)
    scratch = torch.empty(nbytes, dtype=torch.uint8)
    last = added if activation is None else None
    bias = None if weight.bias is None else weight.bias.float()
    call = linear_call(weight, x, out, scratch, last, bias=bias, most=tokens)
    run_once(call, of_tokens(tokens))
    if activation is None:
        return out
    made = activated(out, activation)
    return made if added is None else made.add_(added)
