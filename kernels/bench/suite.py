"""Running rows one after the other, within a time budget, and telling of what could not run."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from kernels.bench.attention_rows import attention_rows
from kernels.bench.layer_rows import layer_rows
from kernels.bench.linear_rows import linear_rows
from kernels.bench.row import Contender, Limits, Outcome, Row, outcome_of
from kernels.bench.sampling_rows import sampling_rows
from kernels.bench.timing import Run, Timer, sets_for

ROOM = 48 << 30  # bytes that a row's contenders may hold together


@dataclass(frozen=True, slots=True)
class Skipped:
    """Why there is no figure; ``failed`` where one of the project's own kernels raised."""

    row: str
    contender: str
    why: str
    failed: bool = False


NO_KERNEL = Skipped("mixture of experts", "quire", "there is no such kernel yet")


def all_rows(tiny: bool = False) -> list[Row]:
    """Every row, by number."""
    rows = attention_rows(tiny) + layer_rows(tiny) + linear_rows(tiny) + sampling_rows(tiny)
    return sorted(rows, key=lambda row: row.number)


@dataclass(frozen=True, slots=True)
class Machine:
    device: torch.device
    timer: Timer
    limits: Limits
    cache_bytes: int  # of the L2 cache


def run_rows(
    rows: Sequence[Row],
    machine: Machine,
    seconds: float,
    progress: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
) -> tuple[list[Outcome], list[Skipped]]:
    """Each row gets its share of the time that is left; a row that gets none is skipped."""
    outcomes: list[Outcome] = []
    skipped: list[Skipped] = []
    end = clock() + seconds
    for index, row in enumerate(rows):
        share = (end - clock()) / (len(rows) - index)
        if share <= 0:
            skipped.append(Skipped(row.name, "all", "the time is over"))
            continue
        found, missing = run_row(row, machine, share)
        outcomes += found
        skipped += missing
        own = f"{found[0].microseconds:.1f} us, {found[0].fraction:.0%}" if found else "not run"
        progress(f"[{index + 1}/{len(rows)}] {row.name}: {own}")
    return outcomes, skipped


def run_row(row: Row, machine: Machine, seconds: float) -> tuple[list[Outcome], list[Skipped]]:
    """All contenders of a row by turns. Whatever one raises costs the others nothing."""
    sets, cold = sets_for(row.nbytes, machine.cache_bytes)
    sets = max(1, min(sets, ROOM // (len(row.contenders) * max(1, row.nbytes))))
    runs: dict[str, Run] = {}
    skipped: list[Skipped] = []
    for contender in row.contenders:
        try:
            runs[contender.name] = _ready(contender, machine, sets)
        except NotImplementedError as error:
            skipped.append(Skipped(row.name, contender.name, str(error)))
        except Exception as error:  # a kernel's or another project's: told, and counted if ours
            why = f"{type(error).__name__}: {error}"
            skipped.append(Skipped(row.name, contender.name, why, failed=contender.own))
    samples = machine.timer.measure(runs, seconds)
    runs.clear()
    _forget()
    outcomes = [
        outcome_of(row, name, found, machine.limits, cold) for name, found in samples.items()
    ]
    return outcomes, skipped


def _ready(contender: Contender, machine: Machine, sets: int) -> Run:
    return machine.timer.ready(contender.make(machine.device, sets), contender.captured)


def _forget() -> None:
    """Gives a row's tensors and graphs back before the next row allocates."""
    gc.collect()
    torch.cuda.empty_cache()  # nothing where no GPU is in use
