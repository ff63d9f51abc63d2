"""Activations and gathers on a GPU."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
from torch import Tensor

from kernels import tuning
from kernels.elementwise import KINDS
from kernels.gpu.compile_case import CompileCase
from kernels.gpu.interpreter import interpreted
from kernels.gpu.norm import dense_rows
from kernels.jit import elementwise as jit


def activation(x: Tensor, kind: str) -> Tensor:
    return _activation(x, kind, x.shape[1], gated=False)


def gated_activation(x: Tensor, kind: str) -> Tensor:
    return _activation(x, kind, x.shape[1] // 2, gated=True)


def _activation(x: Tensor, kind: str, width: int, gated: bool) -> Tensor:
    rows = x.shape[0]
    x = dense_rows(x)
    out = torch.empty((rows, width), dtype=x.dtype, device=x.device)
    if out.numel() == 0:
        return out
    tuned = tuning.lookup("activation", tuning.architecture(x.device), elements=out.numel())
    block = tuned.blocks["BLOCK"]
    jit.activation[(rows * triton.cdiv(width, block),)](
        x,
        out,
        x.stride(0),
        WIDTH=width,
        KIND=kind,
        GATED=gated,
        BLOCK=block,
        INTERPRETED=interpreted(),
        **tuned.launch,
    )
    return out


def xielu(x: Tensor, alpha_p: Tensor, alpha_n: Tensor, beta: Tensor, epsilon: Tensor) -> Tensor:
    rows, width = x.shape
    x = dense_rows(x)
    out = torch.empty((rows, width), dtype=x.dtype, device=x.device)
    if out.numel() == 0:
        return out
    tuned = tuning.lookup("activation", tuning.architecture(x.device), elements=out.numel())
    block = tuned.blocks["BLOCK"]
    jit.xielu[(rows * triton.cdiv(width, block),)](
        x,
        alpha_p,
        alpha_n,
        beta,
        epsilon,
        out,
        x.stride(0),
        WIDTH=width,
        BLOCK=block,
        INTERPRETED=interpreted(),
        **tuned.launch,
    )
    return out


def embedding(
    token_ids: Tensor, table: Tensor, positions: Tensor | None, position_table: Tensor | None
) -> Tensor:
    tokens, width = token_ids.shape[0], table.shape[1]
    out = torch.empty((tokens, width), dtype=table.dtype, device=table.device)
    if out.numel() == 0:
        return out
    tuned = tuning.lookup("embedding", tuning.architecture(table.device))
    block = tuned.blocks["BLOCK"]
    jit.embedding[(tokens * triton.cdiv(width, block),)](
        token_ids.contiguous(),
        table,
        None if positions is None else positions.contiguous(),
        None if position_table is None else position_table.contiguous(),
        out,
        WIDTH=width,
        POSITIONED=positions is not None,
        BLOCK=block,
        INTERPRETED=interpreted(),
        **tuned.launch,
    )
    return out


def compile_cases(arch: int) -> Iterator[CompileCase]:
    for elements in (4096, 2**24):
        tuned = tuning.lookup("activation", arch, elements=elements)
        for kind in KINDS:
            for dtype in ("bf16", "fp32") if kind == "silu" else ("bf16",):
                for gated in (True, False):
                    yield _activation_case(kind, dtype, gated, tuned)
        for dtype in ("bf16", "fp32"):
            yield _xielu_case(dtype, tuned)
    tuned = tuning.lookup("embedding", arch)
    for dtype in ("bf16", "fp32"):
        for positioned in (False, True):
            yield _embedding_case(dtype, positioned, tuned)


def _activation_case(kind: str, dtype: str, gated: bool, tuned: tuning.Tuning) -> CompileCase:
    block = tuned.blocks["BLOCK"]
    return CompileCase(
        name=f"activation/{'gated-' if gated else ''}{kind}-{dtype}-block{block}",
        fn=jit.activation,
        signature={"x_ptr": f"*{dtype}", "out_ptr": f"*{dtype}", "x_stride": "i32"},
        constexprs={
            "WIDTH": 11008,  # no multiple of a large block
            "KIND": kind,
            "GATED": gated,
            "BLOCK": block,
            "INTERPRETED": False,
        },
        num_warps=tuned.num_warps,
        num_stages=tuned.num_stages,
        aligned=frozenset({"x_ptr", "out_ptr", "x_stride"}),
    )


def _xielu_case(dtype: str, tuned: tuning.Tuning) -> CompileCase:
    block = tuned.blocks["BLOCK"]
    numbers = ("alpha_p_ptr", "alpha_n_ptr", "beta_ptr", "epsilon_ptr")
    return CompileCase(
        name=f"activation/xielu-{dtype}-block{block}",
        fn=jit.xielu,
        signature=dict.fromkeys(("x_ptr", *numbers, "out_ptr"), f"*{dtype}") | {"x_stride": "i32"},
        constexprs={"WIDTH": 11008, "BLOCK": block, "INTERPRETED": False},
        num_warps=tuned.num_warps,
        num_stages=tuned.num_stages,
        aligned=frozenset({"x_ptr", *numbers, "out_ptr", "x_stride"}),
    )


def _embedding_case(dtype: str, positioned: bool, tuned: tuning.Tuning) -> CompileCase:
    signature = {"ids_ptr": "*i64", "table_ptr": f"*{dtype}", "out_ptr": f"*{dtype}"}
    added = {"positions_ptr": "*i64", "position_table_ptr": f"*{dtype}"}
    signature |= added if positioned else {}
    return CompileCase(
        name=f"embedding/{'positions-' if positioned else ''}{dtype}",
        fn=jit.embedding,
        signature=signature,
        constexprs=({} if positioned else dict.fromkeys(added))
        | {
            "WIDTH": 4096,
            "POSITIONED": positioned,
            "BLOCK": tuned.blocks["BLOCK"],
            "INTERPRETED": False,
        },
        num_warps=tuned.num_warps,
        num_stages=tuned.num_stages,
        aligned=frozenset(signature),
    )
