"""Rows of the native matrix product: of one row, as fast as its weights are read; of many, as fast
as the machine multiplies."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch.nn.functional import linear as torch_linear

from kernels.bench.cpu.limits import CpuLimits
from kernels.bench.row import Call
from kernels.cpu.native.linear import linear_call, pack_linear
from kernels.cpu.native.program import Program, of_tokens, runtime
from kernels.footprint.native_linear import packed_bytes, product_scratch_bytes

COLD_BYTES = 512 << 20  # of weights that take turns, so that none is in a cache when it is read
SAMPLES = 7
_NATIVE, _TORCH = "native", "torch float32"


@dataclass(frozen=True, slots=True)
class CpuRow:
    """``rows`` times a matrix [channels, inputs] in ``format``; ``goal``: a share of the limit."""

    rows: int
    inputs: int
    channels: int
    format: str
    goal: float

    @property
    def name(self) -> str:
        return f"{self.format} M={self.rows} {self.inputs}x{self.channels}"

    @property
    def nbytes(self) -> int:
        """Weights as they are packed, rows in, rows out."""
        weights = packed_bytes(self.channels, self.inputs, self.format)
        return weights + 4 * self.rows * (self.inputs + self.channels)

    @property
    def operations(self) -> int:
        return 2 * self.rows * self.inputs * self.channels

    @property
    def of_reading(self) -> bool:
        """Whether the bandwidth is the limit, not the product rate."""
        return self.rows == 1

    def share(self, seconds: float, limits: CpuLimits) -> float:
        """Of the row's limit."""
        if self.of_reading:
            return self.nbytes / seconds / limits.read
        return self.operations / seconds / limits.product


def _rows(inputs: int, channels: int) -> tuple[CpuRow, ...]:
    formats = (("f32", 0.93), ("bf16", 0.93), ("f16", 0.93), ("int8", 0.90))
    one = tuple(CpuRow(1, inputs, channels, format, goal) for format, goal in formats)
    return one + tuple(CpuRow(512, inputs, channels, format, 0.9) for format, _ in formats)


# A Llama of 1 B's gate and up, and its way down; the narrow rows of one of 0.5 B.
ROWS = (*_rows(2048, 16384), *_rows(8192, 2048), *_rows(896, 9728))


@dataclass(frozen=True, slots=True)
class Timed:
    """Seconds of one product, and the same product by torch in float32; of the samples each."""

    row: CpuRow
    native: tuple[float, ...]
    torch: tuple[float, ...]


def measure(row: CpuRow, samples: int = SAMPLES) -> Timed:
    """Both by turns, each sample one pass over all of its weights."""
    torch.manual_seed(0)
    passes = {_NATIVE: _native_pass(row), _TORCH: _torch_pass(row)}
    found: dict[str, list[float]] = {name: [] for name in passes}
    for turn in range(-1, samples):  # the first pass warms up
        for name, one in passes.items():
            started = time.perf_counter()
            one.run()
            if turn >= 0:
                found[name].append((time.perf_counter() - started) / one.products)
    return Timed(row, tuple(found[_NATIVE]), tuple(found[_TORCH]))


@dataclass(frozen=True, slots=True)
class _Pass:
    run: Call
    products: int


def _sets(row: CpuRow, nbytes: int) -> int:
    """How many matrices take turns: one where each is read for many rows."""
    return -(-COLD_BYTES // nbytes) if row.of_reading else 1


def _native_pass(row: CpuRow) -> _Pass:
    """One program, as one is all of a step's products."""
    sets = _sets(row, packed_bytes(row.channels, row.inputs, row.format))
    matrix = _matrix(row)
    weights = [pack_linear(matrix.clone(), row.format) for _ in range(sets)]
    rows, out = torch.randn(row.rows, row.inputs), torch.empty(row.rows, row.channels)
    nbytes = product_scratch_bytes(row.rows, row.inputs, row.format, runtime().pool.threads)
    scratch = torch.empty(nbytes, dtype=torch.uint8)
    program = Program(
        [linear_call(one, rows, out, scratch, bias=None, most=row.rows) for one in weights]
    )
    held = (weights, rows, out, scratch)  # the program points into them
    step = of_tokens(row.rows)

    def run() -> object:
        program.run(step)
        return held

    return _Pass(run, sets)


def _torch_pass(row: CpuRow) -> _Pass:
    sets = _sets(row, 4 * row.channels * row.inputs)
    matrix = _matrix(row)
    weights = [matrix.clone() for _ in range(sets)]
    rows = torch.randn(row.rows, row.inputs)

    def run() -> None:
        for weight in weights:
            torch_linear(rows, weight)

    return _Pass(run, sets)


def _matrix(row: CpuRow) -> torch.Tensor:
    return torch.randn(row.channels, row.inputs).mul_(row.inputs**-0.5)
