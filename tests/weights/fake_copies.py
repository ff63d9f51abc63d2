"""A device that copies as late as it may."""

from __future__ import annotations

from collections.abc import Callable

import torch

POISON = 0xAB


class FakeMark:
    def __init__(self, copies: FakeCopies, place: int) -> None:
        self.copies, self.place = copies, place

    def wait(self) -> None:
        self.copies.waits += 1
        self.copies.carry_out(self.place)


class FakeCopies:
    """Does nothing until somebody waits: what reads a buffer too late finds what came after."""

    def __init__(self) -> None:
        self.work: list[Callable[[], None]] = []
        self.done = 0
        self.waits = 0
        self.joins = 0
        self.pinned_bytes = 0

    def pinned(self, num_bytes: int) -> torch.Tensor:
        self.pinned_bytes += num_bytes
        return torch.full((num_bytes,), POISON, dtype=torch.uint8)

    def run(self, work: Callable[[], None]) -> None:
        self.work.append(work)

    def mark(self) -> FakeMark:
        return FakeMark(self, len(self.work))

    def follow_main(self) -> None:
        pass  # the main stream of a CPU is always done

    def join_main(self) -> None:
        self.joins += 1
        self.carry_out(len(self.work))

    def carry_out(self, place: int) -> None:
        while self.done < place:
            self.work[self.done]()
            self.done += 1
