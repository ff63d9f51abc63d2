"""Which level of the native kernels runs: the one that was asked for, or the best that is known to
be right on such machines. No torch.

tested_levels.toml is that knowledge: where the tests of each level passed. A level without a line
there runs where it is asked for, and nowhere else.
"""

from __future__ import annotations

import platform
import tomllib
from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path

from kernels.cpu.native.library import Level, NativeUnavailable, level, levels_here

RECORD = Path(__file__).with_name("tested_levels.toml")


@dataclass(frozen=True, slots=True)
class Tested:
    """That a level's tests passed, when, and on what. ``machine`` is the kernel's word for it."""

    level: str
    machine: str
    date: date
    processor: str
    tests: str


@cache
def tested_levels() -> tuple[Tested, ...]:
    """What the record says, in its order."""
    document = tomllib.loads(RECORD.read_text(encoding="utf-8"))
    return tuple(Tested(**line) for line in document["tested"])


def default_level(machine: str | None = None) -> str:
    """The best level that this processor runs and whose tests passed on such machines.

    Raises NativeUnavailable where there is none.
    """
    machine = machine or platform.machine()
    known = {line.level for line in tested_levels() if line.machine == machine}
    here = levels_here()
    for name in here:
        if name in known:
            return name
    raise NativeUnavailable(
        f"of its levels none has been tested on {machine}; QUIRE_CPU_LEVEL={here[0]} tries one"
    )


_chosen: Level | None = None  # None: the default, which was not asked for yet


def choose_level(name: str | None) -> None:
    """Which level runs from now on; None for the default one. Raises NativeUnavailable."""
    global _chosen
    _chosen = None if name is None else level(name)


def chosen_level() -> Level:
    """Raises NativeUnavailable."""
    global _chosen
    if _chosen is None:
        _chosen = level(default_level())
    return _chosen
