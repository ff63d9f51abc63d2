"""Times the native products of this CPU: ``python -m kernels.bench.cpu``, see --help.

One row of activations must be as fast as its weights are read, 512 as fast as this machine
multiplies float32; both limits are measured in the same run. Beside each stands torch's float32
product. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict

import torch

from kernels.bench.cpu.limits import CpuLimits, best, measure_limits
from kernels.bench.cpu.rows import ROWS, SAMPLES, Timed, measure
from kernels.cpu.native.program import runtime


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m kernels.bench.cpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="rows with TEXT in their name")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="default %(default)s")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    limits, found = measure_limits(), []
    for row in ROWS:
        if options.only not in row.name:
            continue
        found.append(measure(row, options.samples))
        limits = best(limits, measure_limits())
        print(f"{row.name}: {1e6 * statistics.median(found[-1].native):.0f} us", flush=True)
    print(
        f"{runtime().level.name}, {options.threads} threads: reads {limits.read / 1e9:.1f} GB/s, "
        f"multiplies {limits.product / 1e9:.0f} GFLOP/s"
    )
    for timed in found:
        print(_line(timed, limits))
    rows = [asdict(timed) | {"name": timed.row.name} for timed in found]
    print(json.dumps({"limits": asdict(limits), "rows": rows}))
    return 0


def _line(timed: Timed, limits: CpuLimits) -> str:
    row, middle = timed.row, statistics.median(timed.native)
    return (
        f"{row.name:<24} {1e6 * middle:9.0f} us [{1e6 * min(timed.native):.0f}.."
        f"{1e6 * max(timed.native):.0f}]  {row.share(middle, limits):6.1%} of "
        f"{'reading' if row.of_reading else 'the product'}, goal {row.goal:.0%}; "
        f"{statistics.median(timed.torch) / middle:.2f} times as fast as torch in float32"
    )


if __name__ == "__main__":
    sys.exit(main())
