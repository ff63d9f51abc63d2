"""What this CPU could at best do, measured: bytes read a second, float32 operations a second.

Reading is measured with several loops, over ordinary memory and over huge pages; what counts is the
best of them. Two loops are C, compiled here where there is a compiler; the third is torch's sum.
"""

from __future__ import annotations

import ctypes
import mmap
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

READ_BYTES = 1 << 29  # well past any cache
ROUNDS = 5
SIZES = ((1024, 1024, 1024), (512, 2048, 2048))  # rows, inputs, channels of float32 products
_SOURCE = Path(__file__).with_name("read_loops.c")
_VECTOR = 32  # bytes
_LOOPS = ("read_one_stream", "read_four_streams")

Loop = Callable[[], object]


@dataclass(frozen=True, slots=True)
class CpuLimits:
    """Bytes a second by read loop; ``product`` in float32 operations a second, two for a
    multiplication with an addition."""

    loops: Mapping[str, float]
    product: float

    @property
    def read(self) -> float:
        """Bytes a second of the best loop."""
        return max(self.loops.values())


def measure_limits() -> CpuLimits:
    """With torch's number of threads, within a few seconds."""
    return CpuLimits(measure_reading(), max(_product_rate(*size) for size in SIZES))


def best(one: CpuLimits, other: CpuLimits) -> CpuLimits:
    """Of two measurements: what else a machine does only ever slows a loop."""
    loops = {name: max(rate, other.loops[name]) for name, rate in one.loops.items()}
    return CpuLimits(loops, max(one.product, other.product))


def measure_reading() -> dict[str, float]:
    """Bytes a second by loop and pages, each its best."""
    found: dict[str, float] = {}
    for pages, huge in (("", False), (", huge pages", True)):
        memory, numbers = _buffer(huge)
        for name, loop in _loops(numbers).items():
            found[name + pages] = READ_BYTES / _least_seconds(loop)
        del numbers
        _forget(memory)
    return found


def _buffer(huge: bool) -> tuple[mmap.mmap, torch.Tensor]:
    """Memory of READ_BYTES that was written to, and a float32 view of it."""
    memory = mmap.mmap(-1, READ_BYTES)
    memory.madvise(mmap.MADV_HUGEPAGE if huge else mmap.MADV_NOHUGEPAGE)
    numbers = torch.frombuffer(memory, dtype=torch.float32)
    return memory, numbers.fill_(1.0)


def _forget(memory: mmap.mmap) -> None:
    """Gives the pages back at once: the tensor that saw them may live until it is collected."""
    memory.madvise(mmap.MADV_DONTNEED)


def _loops(numbers: torch.Tensor) -> dict[str, Loop]:
    loops: dict[str, Loop] = {"torch.sum": numbers.sum}
    library = _compiled()
    if library is None:
        return loops
    for name in _LOOPS:
        function = getattr(library, name)
        function.restype = ctypes.c_uint64
        function.argtypes = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_int)
        loops[name] = _call(function, numbers)
    return loops


def _call(function: Callable[[int, int, int], object], numbers: torch.Tensor) -> Loop:
    threads = torch.get_num_threads()
    return lambda: function(numbers.data_ptr(), numbers.nbytes // _VECTOR, threads)


@cache
def _compiled() -> ctypes.CDLL | None:
    """None where there is no C compiler that makes it."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "read_loops.so"
        flags = ("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", "-o", str(made))
        done = subprocess.run(
            [compiler, *flags, str(_SOURCE)], capture_output=True, text=True, check=False
        )
        return ctypes.CDLL(str(made)) if done.returncode == 0 else None


def _product_rate(rows: int, inputs: int, channels: int) -> float:
    left, right = torch.randn(rows, inputs), torch.randn(inputs, channels)
    out = torch.empty(rows, channels)
    seconds = _least_seconds(lambda: torch.mm(left, right, out=out))
    return 2 * rows * inputs * channels / seconds


def _least_seconds(loop: Loop) -> float:
    loop()
    least = float("inf")
    for _ in range(ROUNDS):
        started = time.perf_counter()
        loop()
        least = min(least, time.perf_counter() - started)
    return least
