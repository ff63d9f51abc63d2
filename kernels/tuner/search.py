"""Timing what is left, within a time budget, and naming the winners."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import exp, log
from statistics import median

import torch

from kernels.bench.timing import Timer, sets_for
from kernels.tuner.problem import Problem, Shape, told
from kernels.tuning import Row, trying

GAIN = 0.99  # a candidate replaces what the table says where it takes less than this of the time
AT_ONCE = 8  # candidates that take turns; their inputs lie in memory together
ROOM = 64 << 30  # bytes of inputs
TABLE = -1  # stands for what the table says now


@dataclass(frozen=True, slots=True)
class Bench:
    """Where candidates are timed."""

    device: torch.device
    arch: int
    timer: Timer
    cache_bytes: int  # of the L2 cache
    clock: Callable[[], float] = time.monotonic


@dataclass(frozen=True, slots=True)
class Choice:
    """``rows`` are empty where the table's own configuration stays."""

    problem: str
    rows: tuple[Row, ...]
    ratio: float  # of the table's time, over all shapes


def choose_all(
    problems: Sequence[Problem],
    kept: Mapping[str, Sequence[int]],
    bench: Bench,
    seconds: float,
    progress: Callable[[str], None],
) -> list[Choice]:
    """One choice after the other, each seeing the rows that earlier ones chose.

    A problem gets its share of the time that is left; what gets none keeps its rows.
    """
    end = bench.clock() + seconds
    choices: list[Choice] = []
    chosen: tuple[Row, ...] = ()
    for index, problem in enumerate(problems):
        share = (end - bench.clock()) / (len(problems) - index)
        if share <= 0:
            progress(f"{problem.name}: the time is over, its rows stay")
            continue
        choice = choose(problem, kept[problem.name], bench, share, chosen, progress)
        choices.append(choice)
        chosen += choice.rows
        winner = {row.kernel: row.tuning for row in choice.rows}
        result = told(winner) if winner else "the table's rows stay"
        progress(f"[{index + 1}/{len(problems)}] {problem.name}: {result}, {choice.ratio:.3f}")
    return choices


def choose(
    problem: Problem,
    kept: Sequence[int],
    bench: Bench,
    seconds: float,
    chosen: tuple[Row, ...],
    progress: Callable[[str], None],
) -> Choice:
    """The candidate with the lowest geometric mean, over shapes, of its time to the table's."""
    logs: dict[int, list[float]] = {index: [] for index in kept}
    groups = [kept[first : first + AT_ONCE] for first in range(0, len(kept), AT_ONCE)]
    share = seconds / max(1, len(problem.shapes) * len(groups))
    for shape in problem.shapes:
        for group in groups:
            ratios, failed = _ratios(problem, shape, group, bench, share, chosen)
            for index, ratio in ratios.items():
                logs[index].append(log(ratio))
            for index, why in failed.items():
                progress(f"{problem.name} [{index}] failed at {shape.name}: {why}")
    means = {
        index: exp(sum(found) / len(found))
        for index, found in logs.items()
        if len(found) == len(problem.shapes)
    }
    best = min(means, key=lambda index: means[index], default=TABLE)
    if best == TABLE or means[best] >= GAIN:
        return Choice(problem.name, (), 1.0)
    return Choice(problem.name, problem.rows(problem.candidates[best], bench.arch), means[best])


def _ratios(
    problem: Problem,
    shape: Shape,
    group: Sequence[int],
    bench: Bench,
    seconds: float,
    chosen: tuple[Row, ...],
) -> tuple[dict[int, float], dict[int, str]]:
    """Each candidate's median to the table's, timed by turns, and why others could not be."""
    sets, _ = sets_for(shape.nbytes, bench.cache_bytes)
    sets = max(1, min(sets, ROOM // ((len(group) + 1) * max(1, shape.nbytes))))
    runs = {}
    failed: dict[int, str] = {}
    for index in (TABLE, *group):
        own = () if index == TABLE else problem.rows(problem.candidates[index], bench.arch)
        with trying((*own, *chosen), bench.arch):
            try:
                runs[str(index)] = bench.timer.ready(shape.make(bench.device, sets), True)
            except RuntimeError as error:
                if index == TABLE:
                    raise
                failed[index] = str(error)
    samples = bench.timer.measure(runs, seconds)
    runs.clear()
    gc.collect()
    torch.cuda.empty_cache()  # nothing where no GPU is in use
    table = median(samples.pop(str(TABLE)))
    return {int(index): median(found) / table for index, found in samples.items()}, failed
