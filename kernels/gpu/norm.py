"""Residual addition and normalisation on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import triton
from torch import Tensor

from kernels import tuning
from kernels.gpu.compile_case import CompileCase
from kernels.gpu.interpreter import interpreted
from kernels.jit import norm as jit

MAX_WIDTH = 16384  # a row is held in registers


def add_rms_norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    epsilon: float,
    weight_offset: float,
) -> tuple[Tensor, Tensor]:
    return _add_norm(x, residual, weight, None, epsilon, offset=weight_offset)


def add_layer_norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    epsilon: float,
    weight_offset: float,
    heads: int,
) -> tuple[Tensor, Tensor]:
    return _add_norm(
        x, residual, weight, bias, epsilon, centred=True, offset=weight_offset, heads=heads
    )


def _add_norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    epsilon: float,
    *,
    centred: bool = False,
    offset: float = 0.0,
    heads: int = 1,
) -> tuple[Tensor, Tensor]:
    rows, width = x.shape[0] * heads, x.shape[1] // heads
    if not 1 <= width <= MAX_WIDTH:
        raise ValueError(f"x has {width} columns; a GPU normalises 1 .. {MAX_WIDTH}")
    x = dense_rows(x)
    residual = None if residual is None else dense_rows(residual)
    normed = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    total = x if residual is None else torch.empty_like(normed)
    if rows == 0:
        return normed, total
    # By width alone: the number of rows must not change a row's bits.
    tuned = tuning.lookup("add_norm", tuning.architecture(x.device), width=width)
    jit.add_norm[(triton.cdiv(rows, tuned.blocks["ROWS"]),)](
        x,
        residual,
        None if weight is None else weight.contiguous(),
        None if bias is None else bias.contiguous(),
        normed,
        None if residual is None else total,
        rows,
        x.stride(0),
        0 if residual is None else residual.stride(0),
        epsilon,
        WIDTH=width,
        PADDED=triton.next_power_of_2(width),
        ROWS=tuned.blocks["ROWS"],
        HAS_RESIDUAL=residual is not None,
        CENTRED=centred,
        HAS_WEIGHT=weight is not None,
        HAS_BIAS=bias is not None,
        OWN=any(one is not None and one.dim() == 2 for one in (weight, bias)),
        HEADS=heads,
        OFFSET=offset,
        INTERPRETED=interpreted(),
        **tuned.launch,
    )
    return normed, total


def dense_rows(x: Tensor) -> Tensor:
    """x, or a copy of it where the columns of a row do not lie side by side."""
    return x if x.shape[1] == 1 or x.stride(1) == 1 else x.contiguous()


def compile_cases(arch: int) -> Iterator[CompileCase]:
    """Every row of the table at its widest, and a width that is not a power of two."""
    for width in (512, 1024, 5120, 8192, MAX_WIDTH):
        tuned = tuning.lookup("add_norm", arch, width=width)
        for kind in (RMS, replace(RMS, residual=False), LAYER):
            yield _case(width, "bf16", kind, tuned)
        if width != 5120:
            yield _case(width, "fp32", LAYER, tuned)  # what takes most registers
        if width in (1024, 5120):
            yield _case(width, "bf16", replace(RMS, offset=1.0), tuned)
            yield _case(width, "bf16", replace(LAYER, biased=False), tuned)
            yield _case(width, "bf16", replace(LAYER, offset=1.0), tuned)
            yield _case(width, "bf16", replace(LAYER, weighted=False, biased=False), tuned)
    tuned = tuning.lookup("add_norm", arch, width=128)
    for own in (False, True):
        yield _case(128, "bf16", replace(LAYER, residual=False, heads=32, own=own), tuned)


@dataclass(frozen=True, slots=True)
class _Kind:
    """What a case's kernel computes."""

    centred: bool
    biased: bool
    residual: bool = True
    weighted: bool = True
    heads: int = 1
    own: bool = False
    offset: float = 0.0

    @property
    def name(self) -> str:
        kind = "layer" if self.centred else "rms"
        if not self.weighted:
            unusual = "-bare"
        elif self.centred and not self.biased:
            unusual = "-unbiased"
        else:
            unusual = "-1" if self.offset else ""
        if self.heads > 1:
            unusual += "-own-heads" if self.own else "-heads"
        return ("add-" if self.residual else "") + kind + unusual


RMS, LAYER = _Kind(centred=False, biased=False), _Kind(centred=True, biased=True)


def _case(width: int, dtype: str, kind: _Kind, tuned: tuning.Tuning) -> CompileCase:
    wanted = ["x_ptr", "normed_ptr"]
    wanted += ["weight_ptr"] if kind.weighted else []
    wanted += ["residual_ptr", "total_ptr"] if kind.residual else []
    wanted += ["bias_ptr"] if kind.biased else []
    absent = {"weight_ptr", "residual_ptr", "total_ptr", "bias_ptr"} - set(wanted)
    return CompileCase(
        name=f"add_norm/{kind.name}-{dtype}-{width}",
        fn=jit.add_norm,
        signature=dict.fromkeys(wanted, f"*{dtype}")
        | {"rows": "i32", "x_stride": "i32", "residual_stride": "i32", "epsilon": "fp32"},
        constexprs=dict.fromkeys(sorted(absent))
        | {
            "WIDTH": width,
            "PADDED": triton.next_power_of_2(width),
            "ROWS": tuned.blocks["ROWS"],
            "HAS_RESIDUAL": kind.residual,
            "CENTRED": kind.centred,
            "HAS_WEIGHT": kind.weighted,
            "HAS_BIAS": kind.biased,
            "OWN": kind.own,
            "HEADS": kind.heads,
            "OFFSET": kind.offset,
            "INTERPRETED": False,
        },
        num_warps=tuned.num_warps,
        num_stages=tuned.num_stages,
        aligned=frozenset([*wanted, "x_stride", "residual_stride"]),
    )
