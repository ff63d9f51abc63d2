"""Behind the layers, native: the final norm of chosen rows, and the product with the unembedding.

Both are calls that were made once; a step says where its rows are and where the result goes.
Letters in shapes as in server.execution.model.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.cpu.native import structs
from kernels.cpu.native.program import Program, address, of_tokens, run_alone, run_once

ALONE = 1 << 14  # numbers that one thread has normalised before others would be awake


class NativeFinalNorm:
    """The final norm; ``call`` is that of whole rows."""

    def __init__(self, call: structs.Norm) -> None:
        self._call = call

    def __call__(self, x: Tensor, residual: Tensor | None, rows: Tensor | None) -> Tensor:
        """[T, D], [T, D], [R] int32 -> [R, D]; without ``rows`` of all."""
        if rows is not None and (rows.dtype is not torch.int32 or not rows.is_contiguous()):
            raise ValueError(f"rows are {rows.dtype}; they must be int32, one after the other")
        count = x.shape[0] if rows is None else rows.shape[0]
        out = torch.empty(count, x.shape[1])
        call = self._call
        call.x, call.residual, call.rows = address(x), address(residual), address(rows)
        # A sum is read by the norm alone: it may lie where the result goes.
        call.total = call.out = address(out)
        run = run_alone if out.numel() <= ALONE else run_once
        run(call, of_tokens(count))
        return out


class NativeUnembedding:
    """The product with the unembedding; ``call`` is that of up to ``most`` rows."""

    def __init__(self, call: structs.Linear) -> None:
        self._call = call
        self._program = Program((call,))

    def __call__(self, hidden: Tensor, out: Tensor | None) -> Tensor:
        """[R, D] -> [R, V] float32, in ``out`` where it is given."""
        rows, call = hidden.shape[0], self._call
        if rows > call.rows_at_most or hidden.shape[1] != call.inputs:
            raise ValueError(
                f"hidden is {list(hidden.shape)}; it must be at most [{call.rows_at_most},"
                f" {call.inputs}]"
            )
        hidden = hidden.contiguous()
        logits = torch.empty(rows, call.channels) if out is None else out
        call.rows, call.out = address(hidden), address(logits)
        self._program.run(of_tokens(rows))
        return logits
