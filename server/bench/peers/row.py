"""A row of the comparison: what is measured, in turns with the peer, and what it came to."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kernels.bench.cpu.limits import CpuLimits, best, measure_limits
from server.bench.engine import Spread
from server.bench.peers.llama_cpp import LlamaCpp
from server.memory.backends.native_cpu import NATIVE

INT8 = "int8"
# By the name that our formats have; the second is what --dtype calls it.
DTYPES = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}


class NotServed(Exception):
    """Why we have no figure for a row yet, as one line."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One figure of ours beside llama.cpp's, over the rounds. ``ratio`` is of the same round, and
    above 1 where we are ahead, whichever way the figure is read.

    ``shares`` are of the run's limits, by name. ``goals`` are in words.
    """

    name: str
    unit: str
    ours: Spread
    peer: Spread | None = None
    ratio: Spread | None = None
    shares: Mapping[str, float] = field(default_factory=dict)
    goals: str = ""
    rounds: int = 0


@dataclass(slots=True)
class Bench:
    """What rows are measured with. ``deadline`` is of the row under way, in monotonic seconds."""

    cache: Path
    threads: int
    most_rounds: int
    llama: LlamaCpp
    limits: CpuLimits
    deadline: float = float("inf")

    def rounds(self) -> Iterator[int]:
        """At least one, and another while the row has time left for one as long as the longest."""
        longest = 0.0
        for turn in range(self.most_rounds):
            started = time.monotonic()
            if turn and started + longest > self.deadline:
                return
            yield turn
            longest = max(longest, time.monotonic() - started)

    def measure_limits(self) -> None:
        """Once more, beside a row: the best of all is the machine's."""
        self.limits = best(self.limits, measure_limits())


@dataclass(frozen=True, slots=True)
class Row:
    """``run`` raises NotServed, PeerError and what the engine raises."""

    name: str
    run: Callable[[Bench], list[Comparison]]


@dataclass(slots=True)
class Pairs:
    """The rounds' figures, ours and theirs."""

    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)

    def add(self, ours: float, theirs: float) -> None:
        self.ours.append(ours)
        self.theirs.append(theirs)

    def comparison(
        self,
        name: str,
        unit: str,
        goals: str = "",
        shares: Mapping[str, float] | None = None,
        *,
        more_is_better: bool = True,
    ) -> Comparison:
        ratios = [
            mine / theirs if more_is_better else theirs / mine
            for mine, theirs in zip(self.ours, self.theirs, strict=False)
        ]
        return Comparison(
            name=name,
            unit=unit,
            ours=Spread.of(self.ours),
            peer=Spread.of(self.theirs) if self.theirs else None,
            ratio=Spread.of(ratios) if ratios else None,
            shares=shares or {},
            goals=goals,
            rounds=len(self.ours),
        )


def quantization_of(format: str) -> str | None:
    """What --quantization is for a row's format. Raises NotServed."""
    if format != INT8:
        return None
    if INT8 not in NATIVE.quantisations:
        raise NotServed("native kernels do not serve --quantization int8 yet")
    return INT8
