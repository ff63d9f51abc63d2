"""Block shapes, warps and stages of every kernel, as a table.

The table is kernels/tuning_table.json, rewritten by ``python -m kernels.tune`` on a GPU. Nothing is
tuned while serving: a configuration that is not in the table does not run. A row holds a kernel's
name, the architectures it is for (compute capability times ten; none means all), the conditions
under which it applies (a fact's value, or a range [low, high] of it), and the configuration. The
first row that applies wins.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch

from kernels.dispatch import gpu_index

TABLE = Path(__file__).with_name("tuning_table.json")
INTERPRETED_ARCH = 90  # what a CPU interprets is what the best known GPU would run

Fact = int | str


@dataclass(frozen=True, slots=True)
class Tuning:
    """``blocks`` are the kernel's own constexpr sizes, by the names that its launcher uses."""

    blocks: Mapping[str, int]
    num_warps: int
    num_stages: int

    @property
    def launch(self) -> dict[str, int]:
        """What every launch hands on to Triton."""
        return {"num_warps": self.num_warps, "num_stages": self.num_stages}


@dataclass(frozen=True, slots=True)
class Row:
    kernel: str
    archs: tuple[int, ...]
    when: Mapping[str, Any]  # fact -> value, or [low, high]
    tuning: Tuning

    def applies(self, arch: int, facts: Mapping[str, Fact]) -> bool:
        if self.archs and arch not in self.archs:
            return False
        return all(_holds(want, facts.get(fact)) for fact, want in self.when.items())


def _holds(want: Any, value: Fact | None) -> bool:
    if isinstance(want, list):
        return isinstance(value, int) and want[0] <= value <= want[1]
    return bool(want == value)


def architecture(device: torch.device) -> int:
    """Compute capability times ten: 90 for an H200."""
    index = gpu_index(device)
    if index is None:
        trial = _TRIAL.get()
        return INTERPRETED_ARCH if trial is None else trial.arch
    return _capability(index)


@cache
def _capability(index: int) -> int:
    """A GPU does not change, and every launch asks."""
    major, minor = torch.cuda.get_device_capability(index)
    return major * 10 + minor


@dataclass(frozen=True, slots=True)
class Trial:
    """Rows that come before the table's, and which of them a lookup has found."""

    rows: tuple[Row, ...]
    arch: int  # the architecture of tensors that are on no GPU
    found: list[Row] = field(default_factory=list)


# Launchers look their configuration up themselves, so that no caller hands it down; only the tuner,
# which compares configurations, puts others before them. Nothing else sets this.
_TRIAL: ContextVar[Trial | None] = ContextVar("tuning trial", default=None)


@contextmanager
def trying(rows: Sequence[Row], arch: int) -> Iterator[Trial]:
    """Inside, ``rows`` come before the table's: how the tuner runs a candidate."""
    trial = Trial(tuple(rows), arch)
    token = _TRIAL.set(trial)
    try:
        yield trial
    finally:
        _TRIAL.reset(token)


@cache
def rows() -> tuple[Row, ...]:
    """The shipped table, in order."""
    return tuple(row_from(entry) for entry in json.loads(TABLE.read_text())["rows"])


def row_from(entry: Mapping[str, Any]) -> Row:
    """A row of the table's JSON."""
    return Row(
        kernel=entry["kernel"],
        archs=tuple(entry.get("archs", ())),
        when=entry.get("when", {}),
        tuning=Tuning(entry.get("blocks", {}), entry["num_warps"], entry["num_stages"]),
    )


def lookup(kernel: str, arch: int, **facts: Fact) -> Tuning:
    """The first row for ``kernel`` that applies.

    Raises LookupError that names kernel, architecture and facts where there is none.
    """
    trial = _TRIAL.get()
    if trial is not None:
        for row in trial.rows:
            if row.kernel == kernel and row.applies(arch, facts):
                trial.found.append(row)
                return row.tuning
    return _lookup(kernel, arch, tuple(facts.items()))


@lru_cache(maxsize=8192)
def _lookup(kernel: str, arch: int, facts: tuple[tuple[str, Fact], ...]) -> Tuning:
    for row in rows():
        if row.kernel == kernel and row.applies(arch, dict(facts)):
            return row.tuning
    told = ", ".join(f"{fact} {value}" for fact, value in facts)
    raise LookupError(f"no configuration of {kernel} for sm_{arch} with {told or 'no facts'}")
