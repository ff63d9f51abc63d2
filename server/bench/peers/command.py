"""Beside llama.cpp on this CPU: ``python -m server.bench peers [--only TEXT] ...``, see --help.

llama.cpp is built for this machine from the sources that the llama-cpp-python package carries, and
random weights are written for both: that takes half an hour the first time, and is kept in --cache.
What is measured takes turns with the peer within a round; figures are medians over the rounds.

    kernels     one row as a share of what this machine reads, 512 of what it multiplies
    engine      decoding and prefill of one stream, decoding of eight, without HTTP
    overhead    what a step takes beside its kernels
    served      users at once over HTTP: tokens/s, first token, between tokens; and offline
    demo        the shipped model, one stream over HTTP
    start       from start to the first token, and memory
    resident    memory after 16 requests of 1,024 tokens

Every row is printed and kept as it comes, in a dated file of JSON and in a table beside it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from kernels.bench.cpu import rows as kernel_rows
from kernels.bench.cpu.limits import measure_limits
from kernels.cpu.native.library import NativeUnavailable
from kernels.cpu.native.program import runtime
from server.bench.engine import EXIT_REFUSED, Spread
from server.bench.peers.engine_rows import engine_rows
from server.bench.peers.llama_cpp import PeerError, build
from server.bench.peers.models import MODELS
from server.bench.peers.report import RESULTS, Report
from server.bench.peers.row import Bench, Comparison, NotServed, Row
from server.bench.peers.served_rows import served_rows
from server.errors import StartupError
from weights.errors import CheckpointError

CACHE = Path.home() / ".cache" / "quire" / "peers"
MINUTES = 60.0


def all_rows() -> list[Row]:
    kernels = [
        Row(f"kernels/{row.name.replace(' ', '/')}", partial(_kernel, row))
        for row in kernel_rows.ROWS
    ]
    return [*kernels, *engine_rows(), *served_rows()]


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    rows = [row for row in all_rows() if any(text in row.name for text in options.only)]
    if options.list:
        print("\n".join(row.name for row in rows))
        return 0
    try:
        runtime()
        llama = build(options.cache, threads)
        small = MODELS["demo"].gguf(options.cache, "bf16", llama.gguf_package)
        facts = {**llama.facts(small), "its system line": llama.system_line(small)}
    except (NativeUnavailable, PeerError) as error:
        print(f"server.bench peers: {error}", file=sys.stderr)
        return EXIT_REFUSED
    bench = Bench(options.cache, threads, options.rounds, llama, measure_limits())
    report = Report(options.results, facts, bench.limits)
    report.head()
    run(rows, bench, report, 60 * options.minutes)
    return 1 if report.void else 0


def run(rows: Sequence[Row], bench: Bench, report: Report, seconds: float) -> None:
    """Each row gets its share of the time that is left. What one raises costs the others none."""
    end = time.monotonic() + seconds
    for index, row in enumerate(rows):
        left = end - time.monotonic()
        if left <= 0:
            report.add_missing(row.name, "the time is over")
            continue
        bench.deadline = time.monotonic() + left / (len(rows) - index)
        try:
            found = row.run(bench)
        except (PeerError, NotServed, CheckpointError, StartupError, OSError, ValueError) as error:
            report.add_missing(row.name, f"{type(error).__name__}: {error}")
            continue
        except SystemExit as error:  # of a server that did not start
            report.add_missing(row.name, str(error))
            continue
        report.limits = bench.limits
        for one in found:
            report.add(one)


def _kernel(row: kernel_rows.CpuRow, bench: Bench) -> list[Comparison]:
    bench.measure_limits()
    timed = kernel_rows.measure(row)
    bench.measure_limits()
    limit = "of reading" if row.of_reading else "of the product"
    share = row.share(statistics.median(timed.native), bench.limits)
    return [
        Comparison(
            name=f"kernel {row.name}",
            unit="us",
            ours=Spread.of([1e6 * one for one in timed.native]),
            shares={limit: share},
            goals=f">= {row.goal:.0%} {limit}",
            rounds=len(timed.native),
        )
    ]


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m server.bench peers", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add(
        "--only",
        nargs="+",
        default=[""],
        metavar="TEXT",
        help="rows with one of these in their name, as in engine/M/bf16",
    )
    add("--list", action="store_true", help="print the rows' names and measure nothing")
    add("--rounds", type=int, default=5, help="of a row at most; default %(default)s")
    add("--minutes", type=float, default=MINUTES, help="for all rows; default %(default)s")
    add("--cache", type=Path, default=CACHE, metavar="FOLDER", help="default %(default)s")
    add("--results", type=Path, default=RESULTS, metavar="FOLDER", help="default %(default)s")
    given = parser.parse_args(arguments)
    if given.rounds < 1 or given.minutes <= 0:
        parser.error("--rounds and --minutes must be above 0")
    return given
