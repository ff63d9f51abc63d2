"""Times the project's kernels on this machine's GPU beside torch's and FlashInfer's.

``python -m kernels.bench`` (``make bench-gpu``) prints a table, keeps JSON under
kernels/bench/results and prints the same JSON as its last line. Limits are measured in the same
run: the bytes a second of a device copy, the operations a second of a large bfloat16 product.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from kernels.bench.report import RESULTS, costs, document, environment, save, table
from kernels.bench.row import Row
from kernels.bench.suite import NO_KERNEL, Machine, all_rows, run_rows
from kernels.bench.timing import GraphTimer, HostTimer, Timer, measure_limits
from kernels.dispatch import gpu_index
from kernels.gpu.interpreter import interpreted

SECONDS = 240.0
QUICK_SECONDS = 60.0
QUICK_SAMPLES = 15
TINY_LIMIT = {"copy_bytes": 1 << 16, "size": 64}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m kernels.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="rows with TEXT in their name")
    parser.add_argument("--quick", action="store_true", help="fewer samples, within a minute")
    parser.add_argument("--seconds", type=float, help=f"time for all rows ({SECONDS:g})")
    parser.add_argument(
        "--tiny",
        action="store_true",
        help="small shapes in Triton's interpreter (TRITON_INTERPRET=1), where"
        " there is no GPU: shows that rows run, and times nothing",
    )
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER")
    options = parser.parse_args(arguments)
    if options.tiny != interpreted():
        parser.error("--tiny is for Triton's interpreter (TRITON_INTERPRET=1), and only it is")
    if not options.tiny and not torch.cuda.is_available():
        parser.error("there is no GPU that torch sees; --tiny runs the rows without one")
    return bench(
        [row for row in all_rows(options.tiny) if options.only in row.name],
        torch.device("cpu" if options.tiny else "cuda"),
        HostTimer() if options.tiny else GraphTimer(QUICK_SAMPLES if options.quick else 50),
        options.seconds or (QUICK_SECONDS if options.quick else SECONDS),
        options.results,
    )


def bench(
    rows: Sequence[Row], device: torch.device, timer: Timer, seconds: float, results: Path
) -> int:
    """Runs, prints and keeps. Every row that was asked for is told of."""
    torch.manual_seed(0)
    facts = environment(device)
    limits = measure_limits(device, timer, **({} if gpu_index(device) is not None else TINY_LIMIT))
    print(
        f"{facts['device']}, torch {facts['torch']}, triton {facts['triton']}: copies"
        f" {limits.copy / 1e9:.0f} GB/s, multiplies {limits.product / 1e12:.1f} TFLOP/s"
    )
    machine = Machine(device, timer, limits, int(facts.get("l2_bytes", 0)))
    outcomes, skipped = run_rows(rows, machine, seconds, print)
    skipped.append(NO_KERNEL)
    print(table(outcomes))
    for line in (*costs(outcomes), *(f"not run: {s.row}, {s.contender}: {s.why}" for s in skipped)):
        print(line)
    content = document(facts, limits, outcomes, skipped)
    print(f"kept in {save(content, facts, results)}")
    print(json.dumps(content))
    return 1 if any(reason.failed for reason in skipped) else 0


if __name__ == "__main__":
    sys.exit(main())
