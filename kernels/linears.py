"""The matrix product with a packed weight."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.activations import KINDS
from kernels.checks import FLOATS, check_dtype, check_same_device, check_shape
from kernels.cpu import elementwise
from kernels.cpu import linear as cpu_linear
from kernels.dispatch import select

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


@dataclass(frozen=True, slots=True)
class LinearWeight:
    """A weight as its backend wants it; make it with pack_linear and hand it to linear only.

    ``format`` is a canonical format name. Both tensors are [out, in] and [out].
    """

    format: str
    weight: Tensor
    bias: Tensor | None

    @property
    def in_features(self) -> int:
        return self.weight.shape[1]

    @property
    def out_features(self) -> int:
        return self.weight.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of the weight and its bias, whoever owns the storage."""
        return self.weight.nbytes + (0 if self.bias is None else self.bias.nbytes)

    def storages(self) -> tuple[torch.UntypedStorage, ...]:
        """The storages that hold it; a tied weight's is the embedding table's too."""
        tensors = (self.weight,) if self.bias is None else (self.weight, self.bias)
        return tuple(tensor.untyped_storage() for tensor in tensors)


def pack_linear(weight: Tensor, format: str, bias: Tensor | None = None) -> LinearWeight:
    """Packs weight [out, in] and bias [out] in ``format``: "f32", "bf16" or "f16".

    On a CPU the given tensors are kept, without a copy, where their dtype is the format's.
    Raises ValueError for a wrong argument.
    """
    if format not in DTYPES:
        raise ValueError(f"format is {format!r}; it must be one of {', '.join(DTYPES)}")
    check_shape("weight", weight, (None, None))
    check_dtype("weight", weight, FLOATS)
    check_same_device(weight=weight, bias=bias)
    dtype = DTYPES[format]
    if bias is not None:
        check_shape("bias", bias, (weight.shape[0],))
        check_dtype("bias", bias, FLOATS)
        bias = bias.to(dtype).contiguous()
    return LinearWeight(format=format, weight=weight.to(dtype).contiguous(), bias=bias)


def linear(
    x: Tensor,
    weight: LinearWeight,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """``act(x @ weight.T (+ bias)) (+ residual)``: x [T, in] to [T, out] in x's dtype.

    x must have the weight's dtype; sums are accumulated in float32. ``activation`` is one of
    ``activation``'s kinds, applied before the residual is added. residual is [T, out] in x's dtype
    and is not changed. Raises ValueError for a wrong argument.
    """
    check_shape("x", x, (None, weight.in_features))
    check_dtype("x", x, (weight.weight.dtype,))
    check_same_device(weight=weight.weight, x=x, residual=residual)
    if residual is not None:
        check_shape("residual", residual, (x.shape[0], weight.out_features))
        check_dtype("residual", residual, (x.dtype,))
    if activation is not None and activation not in KINDS:
        raise ValueError(f"activation is {activation!r}; it must be one of {', '.join(KINDS)}")
    run = select("linear", x.device, cpu=_on_cpu, gpu="linear:linear")
    return run(x, weight, activation, residual)


def _on_cpu(
    x: Tensor, weight: LinearWeight, activation: str | None, residual: Tensor | None
) -> Tensor:
    if activation is None:
        return cpu_linear.linear(x, weight.weight, weight.bias, residual)
    out = elementwise.activation(cpu_linear.linear(x, weight.weight, weight.bias, None), activation)
    return out if residual is None else out.add_(residual)
