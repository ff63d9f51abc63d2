"""Compiling candidates without running them, some at once, and dropping those that cannot win."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TypeVar

import torch

from kernels.footprint import round_up
from kernels.gate.offline import SHARED_LIMITS, WARP_SIZE, Figures, NotCompiled
from kernels.gate.offline_launch import compiling_launches
from kernels.tuner.problem import Candidate, Problem
from kernels.tuning import trying

Launched = TypeVar("Launched")

MOST_WORKERS = 14
REGISTERS = 65536  # of a multiprocessor (CUDA C++ programming guide, compute capabilities)
REGISTER_UNIT = 256  # a warp's registers are handed out in these
MOST_WARPS = {80: 64, 86: 48, 89: 48, 90: 64, 100: 64}
MOST_BLOCKS = {80: 32, 86: 16, 89: 24, 90: 32, 100: 32}
RESERVED_SHARED = 1024  # bytes that the driver takes of each block's


def resident_blocks(figures: Figures, arch: int) -> int:
    """How many blocks a multiprocessor holds at once; 0 where it cannot hold one."""
    if figures.shared > SHARED_LIMITS[arch]:
        return 0
    a_warp = round_up(figures.registers * WARP_SIZE, REGISTER_UNIT)
    by_registers = REGISTERS // (a_warp * figures.warps)
    by_shared = (SHARED_LIMITS[arch] + RESERVED_SHARED) // (figures.shared + RESERVED_SHARED)
    return min(by_registers, by_shared, MOST_WARPS[arch] // figures.warps, MOST_BLOCKS[arch])


def why_dropped(
    problem: Problem, candidate: Candidate, figures: Mapping[str, Figures], arch: int
) -> str | None:
    """``figures`` by the names of the kernels' functions."""
    for name, found in figures.items():
        if found.spills:
            return f"{name} spills {found.spills} times"
        if resident_blocks(found, arch) == 0:
            return f"{name} does not fit: {found.registers} registers, {found.shared} bytes shared"
    return problem.refuse(candidate, figures)


def _taken(figures: Figures) -> tuple[int, int, int]:
    """A kernel may be launched in several forms: the hungriest decides."""
    return figures.spills, figures.registers * figures.warps, figures.shared


@dataclass(frozen=True, slots=True)
class Checked:
    problem: str
    index: int  # of the candidate
    dropped: str | None  # why, or None where it is to be timed


def check(problem: Problem, index: int, arch: int) -> Checked:
    """Compiles what the launchers would launch, at the problem's shapes."""
    candidate = problem.candidates[index]
    figures: dict[str, Figures] = {}
    try:
        launches = launch_offline(problem, candidate, arch, compiling_launches)
    except (NotCompiled, LookupError, ValueError) as error:
        return Checked(problem.name, index, f"{type(error).__name__}: {error}")
    for launch in launches:
        known = figures.setdefault(launch.kernel, launch.figures)
        figures[launch.kernel] = max(known, launch.figures, key=_taken)
    return Checked(problem.name, index, why_dropped(problem, candidate, figures, arch))


def launch_offline(
    problem: Problem,
    candidate: Candidate,
    arch: int,
    launching: Callable[[int], AbstractContextManager[list[Launched]]],
) -> list[Launched]:
    """What ``launching`` (of kernels.gate.offline_launch) notes of the launches at the problem's
    shapes. Raises RuntimeError where none of them looks a row of the candidate up."""
    rows = problem.rows(candidate, arch)
    with trying(rows, arch) as trial, launching(arch) as launches:
        for shape in problem.shapes:
            for call in shape.make(torch.device("meta"), 1):
                call()
    missed = [row.kernel for row in rows if row not in trial.found]
    if missed:
        raise RuntimeError(
            f"{problem.name}: no launch looks up {', '.join(missed)} under"
            f" {[dict(row.when) for row in rows]}: the problem's conditions are not its shapes'"
        )
    return launches


def check_all(
    problems: Sequence[Problem], arch: int, seconds: float, progress: Callable[[str], None]
) -> dict[str, list[int]]:
    """Problem -> candidates worth timing. What is not compiled within ``seconds`` is dropped."""
    start = time.monotonic()
    context = multiprocessing.get_context("spawn")
    workers = min(MOST_WORKERS, os.cpu_count() or 1)
    kept: dict[str, list[int]] = {problem.name: [] for problem in problems}
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        futures: list[Future[Checked]] = [
            pool.submit(check, problem, index, arch)
            for problem in problems
            for index in range(len(problem.candidates))
        ]
        done, late = wait(futures, timeout=seconds)
        for future in late:
            future.cancel()
        for future in futures:
            if future in done:
                found = future.result()
                if found.dropped is None:
                    kept[found.problem].append(found.index)
                else:
                    progress(f"{found.problem} [{found.index}] dropped: {found.dropped[:160]}")
    total = sum(map(len, kept.values()))
    progress(
        f"{len(done)} candidates compiled by {workers} processes in {time.monotonic() - start:.0f}"
        f" s, {total} to be timed" + (f", {len(late)} not reached" if late else "")
    )
    return kept
