"""Timing calls on a GPU.

Several calls in a row are captured in a CUDA graph, so that launching costs nothing, each over
inputs of its own, so that none finds its inputs in the L2 cache. Contenders take turns: what
disturbs the machine disturbs them all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Protocol, cast

import torch

from kernels.bench.row import Call, Limits
from kernels.footprint import ceil_div

CACHE_TURNS = 3  # rotate over so many times the L2 cache
MOST_SETS = 64
LEAST_SAMPLES = 3
LEAST_CALLS = 16  # of a graph, so that the ends of a replay weigh little
MOST_MICROSECONDS = 20_000  # of a graph: large calls are not repeated within one


@dataclass(frozen=True, slots=True)
class Run:
    """Something that can be started again and again, and how many calls it makes."""

    start: Call
    calls: int


class Timer(Protocol):
    def ready(self, calls: Sequence[Call], captured: bool) -> Run:
        """Makes every call once and prepares to repeat them, as a CUDA graph if ``captured``."""
        ...

    def measure(self, runs: Mapping[str, Run], seconds: float) -> dict[str, list[float]]:
        """Each run's samples, in microseconds of one call, within about ``seconds`` in all."""
        ...


def sets_for(nbytes: int, cache_bytes: int) -> tuple[int, bool]:
    """How many sets of inputs to rotate over, and whether that leaves the cache cold."""
    wanted = CACHE_TURNS * cache_bytes
    sets = max(1, min(MOST_SETS, ceil_div(wanted, max(1, nbytes))))
    return sets, sets * nbytes >= wanted


@dataclass(frozen=True, slots=True)
class GraphTimer:
    """CUDA graphs and events on the current stream."""

    samples: int = 50

    def ready(self, calls: Sequence[Call], captured: bool) -> Run:
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for call in calls:
                call()
            once = _elapsed(calls[0])
        torch.cuda.current_stream().wait_stream(side)
        fit = round(MOST_MICROSECONDS / max(1.0, once * len(calls)))
        passes = max(1, min(ceil_div(LEAST_CALLS, len(calls)), fit))
        repeated = _Repeated(calls, passes)
        if not captured:
            return Run(repeated, passes * len(calls))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            repeated()
        return Run(graph.replay, passes * len(calls))

    def measure(self, runs: Mapping[str, Run], seconds: float) -> dict[str, list[float]]:
        samples: dict[str, list[float]] = {name: [] for name in runs}
        end = time.monotonic() + seconds
        for turn in range(self.samples):
            if turn >= LEAST_SAMPLES and time.monotonic() > end:
                break
            for name, run in runs.items():
                samples[name].append(_elapsed(run.start) / run.calls)
        return samples


@dataclass(frozen=True, slots=True)
class _Repeated:
    calls: Sequence[Call]
    passes: int

    def __call__(self) -> None:
        for _ in range(self.passes):
            for call in self.calls:
                call()


def _elapsed(start: Call) -> float:
    """Microseconds of one run, behind another that hides what starting it costs the host."""
    before = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    after = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    start()
    before.record()
    start()
    after.record()
    after.synchronize()
    return 1000 * cast(float, before.elapsed_time(after))


@dataclass(frozen=True, slots=True)
class HostTimer:
    """The host's clock around one pass: shows, without a GPU, that a row runs."""

    clock: Callable[[], float] = time.perf_counter

    def ready(self, calls: Sequence[Call], captured: bool) -> Run:
        return Run(_Repeated(calls, 1), len(calls))

    def measure(self, runs: Mapping[str, Run], seconds: float) -> dict[str, list[float]]:
        samples = {}
        for name, run in runs.items():
            before = self.clock()
            run.start()
            samples[name] = [max(1e-3, 1e6 * (self.clock() - before) / run.calls)]
        return samples


# The two limits of a GPU, measured: how fast it copies, and how fast it multiplies.

COPY_BYTES = 1 << 30
PRODUCT_SIZE = 8192


def measure_limits(
    device: torch.device, timer: Timer, *, copy_bytes: int = COPY_BYTES, size: int = PRODUCT_SIZE
) -> Limits:
    """A device-to-device copy, bytes read and written; a bfloat16 product of random numbers."""
    source = torch.empty(copy_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    left = torch.randn(size, size, dtype=torch.bfloat16, device=device)
    right = torch.randn(size, size, dtype=torch.bfloat16, device=device)
    product = torch.empty_like(left)
    samples = timer.measure(
        {
            "copy": timer.ready([lambda: target.copy_(source)], True),
            "product": timer.ready([lambda: torch.mm(left, right, out=product)], True),
        },
        seconds=2.0,
    )
    return Limits(
        copy=2 * copy_bytes / (median(samples["copy"]) * 1e-6),
        product=2 * size**3 / (median(samples["product"]) * 1e-6),
    )
