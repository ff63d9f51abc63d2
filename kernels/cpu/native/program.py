"""Programs of calls into the native library, and the threads and the level that run them.

Pointers are taken from tensors when a call is made: whoever makes a program keeps these alive and
where they are.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from kernels.cpu.native.levels import chosen_level
from kernels.cpu.native.library import Level, Pool
from kernels.cpu.native.structs import ARGUMENTS, Call, NumberFormat, Step

_OPERATION = {struct: operation for operation, struct in ARGUMENTS.items()}
FORMATS = {
    torch.float32: NumberFormat.F32,
    torch.bfloat16: NumberFormat.BF16,
    torch.float16: NumberFormat.F16,
}
CACHE_FORMATS = {**FORMATS, torch.int8: NumberFormat.INT8}


@dataclass(frozen=True, slots=True)
class Runtime:
    """The level and the threads that programs run on."""

    level: Level
    pool: Pool


def runtime() -> Runtime:
    """With as many threads as torch was told to use. Raises NativeUnavailable."""
    return Runtime(chosen_level(), _pool(torch.get_num_threads()))


@cache
def _pool(threads: int) -> Pool:
    return Pool(threads)


class Program:
    """Calls that run one after the other, every one on all threads."""

    def __init__(self, arguments: Sequence[ctypes.Structure]) -> None:
        self._arguments = tuple(arguments)  # the calls point to them
        self._calls = (Call * len(self._arguments))(
            *(Call(_OPERATION[type(one)], ctypes.addressof(one)) for one in self._arguments)
        )

    def __len__(self) -> int:
        return len(self._arguments)

    def run(self, step: Step, count: int | None = None, passes: int = 1) -> None:
        """The first ``count`` calls, or all of them, ``passes`` times over."""
        how = runtime()
        how.pool.run(how.level, self._calls, len(self) if count is None else count, step, passes)


_OneCall = Call * 1


def run_once(arguments: ctypes.Structure, step: Step) -> None:
    """One operation by itself."""
    _run_one(arguments, step, runtime().pool)


def run_alone(arguments: ctypes.Structure, step: Step) -> None:
    """One operation by itself, on the thread that asks: for what is not worth waking others."""
    _run_one(arguments, step, _pool(1))


def _run_one(arguments: ctypes.Structure, step: Step, pool: Pool) -> None:
    call = Call(_OPERATION[type(arguments)], ctypes.addressof(arguments))
    pool.run(chosen_level(), _OneCall(call), 1, step)


def address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def of_tokens(tokens: int) -> Step:
    """A step of which an operation wants to know no more than the number of rows."""
    return Step(tokens=tokens)


def all_float32(named: Iterable[tuple[str, Tensor | None]]) -> None:
    """Raises ValueError for one that is not float32 with elements of a row side by side."""
    for name, tensor in named:
        if tensor is None:
            continue
        if tensor.dtype is not torch.float32:
            raise ValueError(f"{name} is {tensor.dtype}; native kernels compute on float32 rows")
        if tensor.dim() and tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
            raise ValueError(f"{name} has strides {list(tensor.stride())}; the last must be 1")
