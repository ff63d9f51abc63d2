"""What the tuner chooses between, and what it chooses for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from kernels.bench.row import Call
from kernels.gate.offline import Figures
from kernels.tuning import Row, Tuning

Candidate = Mapping[str, Tuning]  # kernel -> configuration; kernels that are chosen together
Refusal = Callable[[Candidate, Mapping[str, Figures]], str | None]


@dataclass(frozen=True, slots=True)
class Shape:
    """A size that candidates are timed at; ``make`` is a benchmark contender's."""

    name: str
    nbytes: int
    make: Callable[[torch.device, int], Sequence[Call]]


def nothing_refused(candidate: Candidate, figures: Mapping[str, Figures]) -> str | None:
    return None


@dataclass(frozen=True, slots=True)
class Problem:
    """One choice. The winner becomes a row for each kernel of ``when``, under its conditions.

    Conditions must hold for every shape, and for nothing that the shapes do not stand for: a
    measured row goes before the general ones. ``refuse`` says of compiled kernels, by name, why
    a candidate need not be timed.
    """

    name: str
    when: Mapping[str, Mapping[str, Any]]
    candidates: tuple[Candidate, ...]
    shapes: tuple[Shape, ...]
    refuse: Refusal = nothing_refused

    def rows(self, candidate: Candidate, arch: int) -> tuple[Row, ...]:
        return tuple(
            Row(kernel, (arch,), conditions, candidate[kernel])
            for kernel, conditions in self.when.items()
        )


def told(candidate: Candidate) -> str:
    """A candidate on one line."""
    return "; ".join(
        f"{kernel} "
        + " ".join(
            [f"{name}={value}" for name, value in tuning.blocks.items()]
            + [f"warps={tuning.num_warps}", f"stages={tuning.num_stages}"]
        )
        for kernel, tuning in candidate.items()
    )
