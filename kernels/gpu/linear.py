"""The matrix product with a packed weight on a GPU: the form for the number of rows, its launch.

The tuning table says where one form ends and the next begins ("linear"), and how each is shaped:

    rows            plain formats      quantised
    1 .. 2          linear_reduce      linear_reduce (int4: linear_dot)
    .. 32           linear_dot         linear_dot
    some hundreds   the library's      linear_tiled: widened in registers, no scratch
    more            the library's      panels of 16-bit floats, then the library's

A quantised weight meets the library in the end because at hundreds of rows arithmetic counts, where
the library's own product is the fastest there is, and widening the weight once costs little beside
it; below, the panels' traffic would cost more than it saves. A batch-invariant weight takes one
shape of linear_tiled for any number of rows.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
from torch import Tensor

from kernels import tuning
from kernels.footprint.gpu_linear import (
    LEAST_PANEL_ROWS,
    MOST_SKINNY_ROWS,
    panel_rows,
    splits_allowed,
)
from kernels.gpu import linear_cases
from kernels.gpu.compile_case import CompileCase
from kernels.gpu.interpreter import interpreted
from kernels.jit.linear_skinny import linear_dot, linear_finish, linear_reduce
from kernels.jit.linear_tiled import linear_dequantise, linear_tiled
from kernels.linears import LinearWeight
from kernels.tuning import Tuning

FINISH_BLOCK = 1024
MOST_REDUCED_ROWS = 2  # linear_reduce has no more sums
_NAMES = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}


def linear(
    x: Tensor, weight: LinearWeight, activation: str | None, residual: Tensor | None
) -> Tensor:
    """``act(x @ weight.T (+ bias)) (+ residual)``; see kernels.linear."""
    x = x.contiguous()
    residual = None if residual is None else residual.contiguous()
    out = torch.empty((x.shape[0], weight.out_features), dtype=x.dtype, device=x.device)
    if out.numel() == 0:
        return out
    launch = _Launch(x, weight, activation, residual, out)
    if weight.batch_invariant:
        launch.tiled("linear_invariant")
        return out
    limits = launch.tuning("linear").blocks
    rows = x.shape[0]
    if weight.scales is None and rows >= limits["LEAST_LIBRARY_ROWS"]:
        launch.by_library(weight.weight, out)
    elif rows >= max(limits["LEAST_LIBRARY_ROWS"], LEAST_PANEL_ROWS):
        launch.by_panels()
    elif rows <= min(limits["MOST_REDUCED_ROWS"], MOST_REDUCED_ROWS) and weight.format != "int4":
        launch.reduce()
    elif rows <= min(limits["MOST_SKINNY_ROWS"], MOST_SKINNY_ROWS):
        launch.dot()
    else:
        launch.tiled("linear_tiled")
    return out


def compile_cases(arch: int) -> Iterator[CompileCase]:
    yield from linear_cases.cases(arch)


def block_m(rows: int) -> int:
    """What rows of the skinny product are padded to."""
    return max(8, 1 << (rows - 1).bit_length())


class _Launch:
    """One product: its operands as kernels take them."""

    def __init__(
        self,
        x: Tensor,
        weight: LinearWeight,
        activation: str | None,
        residual: Tensor | None,
        out: Tensor,
    ) -> None:
        self._x, self._out = x, out
        self._rows, self._in = x.shape
        self._out_features = weight.out_features
        self._arch = tuning.architecture(x.device)
        self._activation = activation or ""
        self._bias, self._residual = weight.bias, residual
        self._format, self._group = weight.format, 0
        self._numbers, self._scales = weight.weight, weight.scales
        if weight.format == "int4":
            self._group = weight.weight.shape[2]
            self._scales = None if weight.scales is None else weight.scales.view(torch.int32)
        elif weight.format == "fp8" and self._arch < linear_cases.FP8_ARCH:
            self._format = "fp8_bits"
            self._numbers = weight.weight.view(torch.uint8)

    def tuning(self, kernel: str) -> Tuning:
        facts: dict[str, tuning.Fact] = {
            "format": self._format,
            "dtype": _NAMES[self._x.dtype],
            "out": self._out_features,
            "in": self._in,
        }
        if kernel != "linear_invariant":  # whose shape must not depend on the number of rows
            facts["rows"] = self._rows
        return tuning.lookup(kernel, self._arch, **facts)

    def reduce(self) -> None:
        tuned = self.tuning("linear_reduce")
        block_n, block_k = tuned.blocks["BLOCK_N"], tuned.blocks["BLOCK_K"]
        linear_reduce[(triton.cdiv(self._out_features, block_n),)](
            *self._operands(),
            self._out_features,
            self._in,
            ROWS=self._rows,
            FORMAT=self._kernel_format(),
            **self._epilogue(),
            WHOLE_TILES=self._in % block_k == 0,
            BLOCK_N=block_n,
            BLOCK_K=block_k,
            INTERPRETED=interpreted(),
            **tuned.launch,
        )

    def dot(self) -> None:
        tuned = self.tuning("linear_dot")
        splits = splits_allowed(tuned.blocks["SPLITS"], self._in, self._out_features)
        out = self._out
        if splits > 1:
            shape = (splits, self._rows, self._out_features)
            out = torch.empty(shape, dtype=torch.float32, device=self._x.device)
        linear_dot[(triton.cdiv(self._out_features, tuned.blocks["BLOCK_N"]), splits)](
            *self._operands(out),
            self._rows,
            self._out_features,
            self._in,
            **self._tiles_of(tuned),
            SPLITS=splits,
            BLOCK_M=block_m(self._rows),
            **tuned.launch,
        )
        if splits > 1:
            self._finish(out, splits, self._bias, self._residual)

    def tiled(self, kernel: str) -> None:
        tuned = self.tuning(kernel)
        rows, channels = tuned.blocks["BLOCK_M"], tuned.blocks["BLOCK_N"]
        tiles = triton.cdiv(self._rows, rows) * triton.cdiv(self._out_features, channels)
        linear_tiled[(tiles,)](
            *self._operands(),
            self._rows,
            self._out_features,
            self._in,
            **self._tiles_of(tuned),
            BLOCK_M=rows,
            BAND=tuned.blocks["BAND"],
            **tuned.launch,
        )

    def by_library(self, weight: Tensor, out: Tensor) -> None:
        """out [rows, out] by the library's product, which takes one addend along."""
        bias, residual = self._bias, self._residual
        if bias is not None:
            torch.addmm(bias, self._x, weight.t(), out=out)
            bias = None
        elif residual is not None and not self._activation:
            torch.addmm(residual, self._x, weight.t(), out=out)
            residual = None
        else:
            torch.mm(self._x, weight.t(), out=out)
        self._finish(out, 1, bias, residual)

    def by_panels(self) -> None:
        """Panels of output channels, one after the other in the same scratch."""
        most = panel_rows(self._in, self._out_features, self._x.element_size())
        scratch = torch.empty((most, self._in), dtype=self._x.dtype, device=self._x.device)
        for first in range(0, self._out_features, most):
            panel = scratch[: min(most, self._out_features - first)]
            self._dequantise(panel, first)
            part = self._out[:, first : first + panel.shape[0]]
            torch.mm(self._x, panel.t(), out=part)
        self._finish(self._out, 1, self._bias, self._residual)

    def _dequantise(self, panel: Tensor, first: int) -> None:
        tuned = self.tuning("linear_dequantise")
        block_n, block_k = tuned.blocks["BLOCK_N"], self._block_k(tuned)
        grid = (triton.cdiv(panel.shape[0], block_n), triton.cdiv(self._in, block_k))
        linear_dequantise[grid](
            self._numbers,
            self._scales,
            panel,
            first,
            panel.shape[0],
            self._out_features,
            self._in,
            FORMAT=self._kernel_format(),
            GROUP=self._group,
            BLOCK_N=block_n,
            BLOCK_K=block_k,
            INTERPRETED=interpreted(),
            **tuned.launch,
        )

    def _finish(
        self, parts: Tensor, splits: int, bias: Tensor | None, residual: Tensor | None
    ) -> None:
        """Adds up ``parts`` and applies what is left of the epilogue, into the result."""
        if splits == 1 and bias is None and residual is None and not self._activation:
            return
        linear_finish[(triton.cdiv(self._out.numel(), FINISH_BLOCK),)](
            parts,
            parts if bias is None else bias,
            parts if residual is None else residual,
            self._out,
            self._out.numel(),
            self._out_features,
            SPLITS=splits,
            **self._epilogue(bias is not None, residual is not None),
            BLOCK=FINISH_BLOCK,
        )

    def _operands(self, out: Tensor | None = None) -> tuple[Tensor, ...]:
        """Pointers in the order that every product takes; what is absent is never read."""
        absent = self._x
        return (
            self._x,
            self._numbers,
            absent if self._scales is None else self._scales,
            absent if self._bias is None else self._bias,
            absent if self._residual is None else self._residual,
            self._out if out is None else out,
        )

    def _epilogue(
        self, has_bias: bool | None = None, has_residual: bool | None = None
    ) -> dict[str, object]:
        return {
            "ACTIVATION": self._activation,
            "HAS_BIAS": self._bias is not None if has_bias is None else has_bias,
            "HAS_RESIDUAL": self._residual is not None if has_residual is None else has_residual,
        }

    def _tiles_of(self, tuned: Tuning) -> dict[str, object]:
        """What the kernels with tl.dot share: the format, the epilogue, tiles of the weight."""
        block_k = self._block_k(tuned)
        return {
            "FORMAT": self._kernel_format(),
            "GROUP": self._group,
            **self._epilogue(),
            "WHOLE_TILES": self._in % block_k == 0,
            "BLOCK_N": tuned.blocks["BLOCK_N"],
            "BLOCK_K": block_k,
            "STAGES": tuned.num_stages,
            "INTERPRETED": interpreted(),
        }

    def _kernel_format(self) -> str:
        return self._format if self._scales is not None else "plain"

    def _block_k(self, tuned: Tuning) -> int:
        return 2 * self._group if self._format == "int4" else tuned.blocks["BLOCK_K"]
