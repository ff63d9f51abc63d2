"""The matrix product with a packed weight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.checks import FLOATS, check_dtype, check_same_device, check_shape
from kernels.dispatch import select
from kernels.quantization import INT4_GROUP, QUANTISED, quantise

FUSED = ("silu", "gelu_tanh", "gelu_erf", "relu")  # activations that a product may end with
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


@dataclass(frozen=True, slots=True)
class LinearWeight:
    """A weight as its backend wants it; make it with pack_linear and hand it to linear only.

    ``format`` is a canonical format name, or one that its backend alone knows. ``weight`` is [out,
    in] in a plain format; a quantised one's numbers and ``scales`` lie as kernels.quantization
    says, and in a backend's own format both are that backend's matter. ``bias`` is [out]. ``shape``
    is (out, in), ``dtype`` that of the rows that it multiplies.
    """

    format: str
    weight: Tensor
    bias: Tensor | None
    scales: Tensor | None
    shape: tuple[int, int]
    dtype: torch.dtype
    batch_invariant: bool = False

    @property
    def in_features(self) -> int:
        return self.shape[1]

    @property
    def out_features(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of the weight, its scales and its bias, whoever owns the storage."""
        return sum(tensor.nbytes for tensor in self._tensors)

    def storages(self) -> tuple[torch.UntypedStorage, ...]:
        """The storages that hold it; a tied weight's is the embedding table's too."""
        return tuple(tensor.untyped_storage() for tensor in self._tensors)

    @property
    def _tensors(self) -> tuple[Tensor, ...]:
        held = (self.weight, self.scales, self.bias)
        return tuple(tensor for tensor in held if tensor is not None)


def pack_linear(
    weight: Tensor, format: str, bias: Tensor | None = None, *, batch_invariant: bool = False
) -> LinearWeight:
    """Packs weight [out, in] and bias [out] in ``format``, as the backend in use wants them.

    Plain formats, "f32", "bf16" and "f16", keep the given tensors, without a copy, where their
    dtype is the format's. Quantised ones, "int8", "int4" and "fp8", are for a GPU: bias and rows
    keep the weight's dtype. ``batch_invariant`` says that a row's product must not depend on the
    number of rows, not by a bit (a GPU's; on a CPU it changes nothing).

    Raises ValueError for a wrong argument, and for a quantised format on a CPU.
    """
    run: Callable[..., LinearWeight] = select("pack_linear", weight.device)
    return run(weight, format, bias, batch_invariant=batch_invariant)


def pack_on_any_device(
    weight: Tensor,
    format: str,
    bias: Tensor | None = None,
    *,
    batch_invariant: bool = False,
    group: int = INT4_GROUP,
) -> LinearWeight:
    """``pack_linear`` wherever the tensors are: packing needs no GPU, only multiplying does.

    ``group`` is int4's. Raises ValueError for a wrong argument.
    """
    if format not in DTYPES and format not in QUANTISED:
        known = ", ".join((*DTYPES, *QUANTISED))
        raise ValueError(f"format is {format!r}; it must be one of {known}")
    check_shape("weight", weight, (None, None))
    check_dtype("weight", weight, FLOATS)
    check_same_device(weight=weight, bias=bias)
    dtype = DTYPES.get(format, weight.dtype)
    if bias is not None:
        check_shape("bias", bias, (weight.shape[0],))
        check_dtype("bias", bias, FLOATS)
        bias = bias.to(dtype).contiguous()
    shape = (weight.shape[0], weight.shape[1])
    if format in DTYPES:
        kept = weight.to(dtype).contiguous()
        return LinearWeight(format, kept, bias, None, shape, dtype, batch_invariant)
    made = quantise(weight, format, group=group)
    return LinearWeight(format, made.numbers, bias, made.scales, shape, dtype, batch_invariant)


def linear(
    x: Tensor,
    weight: LinearWeight,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """``act(x @ weight.T (+ bias)) (+ residual)``: x [T, in] to [T, out] in x's dtype.

    x must have the weight's ``dtype``; sums are accumulated in float32. ``activation`` is one of
    FUSED, applied before the residual is added. residual is [T, out] in x's dtype and is not
    changed. Raises ValueError for a wrong argument.
    """
    check_shape("x", x, (None, weight.in_features))
    check_dtype("x", x, (weight.dtype,))
    check_same_device(weight=weight.weight, x=x, residual=residual)
    if residual is not None:
        check_shape("residual", residual, (x.shape[0], weight.out_features))
        check_dtype("residual", residual, (x.dtype,))
    if activation is not None and activation not in FUSED:
        raise ValueError(f"activation is {activation!r}; it must be one of {', '.join(FUSED)}")
    run: Callable[..., Tensor] = select("linear", x.device)
    return run(x, weight, activation, residual)
