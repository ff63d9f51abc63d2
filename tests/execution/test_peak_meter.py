"""The peak of a step: on a CPU by watching operations, on a GPU by the allocator's own figures."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from server.execution.live_bytes import AllocatorPeak, PeakMeter, storage_bytes

KIB = 2**10
GPU = torch.device("cuda", 0)


@dataclass
class Allocator:
    """Counts as torch.cuda does: what is allocated, and the most since the last reset."""

    held: int = 0
    peak: int = 0

    def take(self, nbytes: int) -> None:
        self.held += nbytes
        self.peak = max(self.peak, self.held)

    def memory_allocated(self, device: torch.device) -> int:
        return self.held

    def max_memory_allocated(self, device: torch.device) -> int:
        return self.peak

    def reset_peak_memory_stats(self, device: torch.device) -> None:
        self.peak = self.held


def test_the_allocators_peak_is_what_came_on_top() -> None:
    allocator = Allocator()
    allocator.take(1000)  # weights
    allocator.take(500)
    allocator.take(-500)  # an earlier, larger step
    with AllocatorPeak(GPU, allocator) as step:
        allocator.take(300)
        allocator.take(-300)
        allocator.take(200)
    assert step.peak_bytes == 300
    with AllocatorPeak(GPU, allocator) as next_step:  # 200 of the last one are still held
        allocator.take(50)
    assert next_step.peak_bytes == 50


def test_what_an_earlier_part_of_the_step_left_counts() -> None:
    meter = PeakMeter()
    with meter.watch(8, 0):
        hidden = torch.ones(16, KIB)
    assert storage_bytes(hidden) == 64 * KIB
    assert storage_bytes(hidden[3:5]) == 64 * KIB  # a part keeps the whole alive
    assert storage_bytes(None) == 0
    with meter.watch(0, 4, storage_bytes(hidden)):
        logits = hidden[:4] @ torch.ones(KIB, 2 * KIB)
    assert storage_bytes(logits) == 32 * KIB
    assert meter.peak_bytes == 64 * KIB + 32 * KIB + 8 * KIB * KIB  # the matrix of ones as well


def test_a_step_that_failed_is_measured_the_next_time() -> None:
    meter = PeakMeter()
    with pytest.raises(MemoryError), meter.watch(8, 8):
        raise MemoryError
    with meter.watch(8, 8):
        held = torch.ones(KIB)
    assert meter.peak_bytes == storage_bytes(held)
    with meter.watch(4, 4):  # no larger: not watched
        torch.ones(8 * KIB)
    assert meter.peak_bytes == storage_bytes(held)
