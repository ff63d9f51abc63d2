"""Chooses block sizes, warps and stages for this machine's GPU and writes them into the table.

``python -m kernels.tune`` compiles the candidates of every problem in worker processes, drops those
that spill or do not fit, times the others by turns against what the table says, and puts the
winners before the table's general rows, for this architecture alone. What is not measured, and what
gains less than a hundredth, stays as it is. ``--offline 90`` compiles and drops only: it needs no
GPU and writes nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from kernels import tuning
from kernels.bench.report import environment
from kernels.bench.timing import GraphTimer
from kernels.gpu.interpreter import interpreted
from kernels.tuner.problem import Problem
from kernels.tuner.problems import all_problems
from kernels.tuner.pruning import check_all
from kernels.tuner.search import Bench, Choice, choose_all
from kernels.tuner.writer import merged, write_table

SECONDS = 330.0
COMPILE_PART = 0.4  # of the time, at most
SAMPLES = 20


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m kernels.tune",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="problems with TEXT in the name")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="time for all of it")
    parser.add_argument("--table", type=Path, default=tuning.TABLE, metavar="FILE")
    parser.add_argument("--offline", type=int, metavar="ARCH", help="compile only, for sm_ARCH")
    parser.add_argument("--list", action="store_true", help="print the problems and end")
    options = parser.parse_args(arguments)
    problems = [problem for problem in all_problems() if options.only in problem.name]
    if options.list:
        for problem in problems:
            print(
                f"{problem.name}: {len(problem.candidates)} candidates,"
                f" {len(problem.shapes)} shapes"
            )
        return 0
    if interpreted():
        parser.error("Triton is told to interpret kernels (TRITON_INTERPRET); nothing compiles so")
    if options.offline is not None:
        check_all(problems, options.offline, options.seconds, print)
        return 0
    if not torch.cuda.is_available():
        parser.error("there is no GPU that torch sees; --offline compiles without one")
    return tune(problems, torch.device("cuda"), options.seconds, options.table)


def tune(problems: Sequence[Problem], device: torch.device, seconds: float, table: Path) -> int:
    start = time.monotonic()
    torch.manual_seed(0)
    arch = tuning.architecture(device)
    facts = environment(device)
    print(f"{facts['device']} (sm_{arch}): {len(problems)} problems, {seconds:.0f} s", flush=True)
    kept = check_all(problems, arch, COMPILE_PART * seconds, _say)
    bench = Bench(device, arch, GraphTimer(SAMPLES), int(facts["l2_bytes"]))
    choices = choose_all(problems, kept, bench, seconds - (time.monotonic() - start), _say)
    record(choices, {"arch": arch, **facts}, table)
    print(f"{table.name} renewed after {time.monotonic() - start:.0f} s")
    return 0


def record(choices: Sequence[Choice], facts: dict[str, str | int], table: Path) -> None:
    """Writes the winners, and with what they were measured."""
    rows = [row for choice in choices for row in choice.rows]
    write_table(table, merged(json.loads(table.read_text()), rows, facts))


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
