"""Compiles every kernel that may ship, without a GPU, and holds the figures to a baseline.

``python -m kernels.compile_gate`` (``make kernels-check``) compiles each module's cases for sm_80
and sm_90, and one case of every kernel for sm_89 and sm_100. It fails on a spill, on a 64-bit
float, on more shared memory than a block may have, on a wanted instruction that is missing, and on
any figure that is not the baseline's: a change of machine code is reviewed like a change of source.
``--write`` makes what is seen the new baseline.

The baseline holds a digest of what each case was compiled from. ``--changed`` compiles the cases
whose digest is another now, and one in SAMPLE of the rest; the others' figures are taken as held,
since the same compiler makes the same machine code of the same source.

``--smoke`` compiles one case of every kernel and compares nothing: the check for a version of
Triton that the baseline was not written with.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import triton
from triton.runtime.jit import JITCallable

from kernels.gate.baseline import Row, Rows, differences, read_baseline, review, write_baseline
from kernels.gate.cases import (
    Job,
    Ungated,
    cases_of,
    launcher_modules,
    representative,
    sources_of,
)
from kernels.gate.offline import (
    SHARED_LIMITS,
    Figures,
    NotCompiled,
    compile_case,
    wanted_but_missing,
)
from kernels.gpu.compile_case import FLOAT64, CompileCase
from kernels.gpu.interpreter import interpreted

BASELINE = Path(__file__).with_name("compile_baseline.json")
CACHE = Path(__file__).parent.parent / ".cache" / "compile_gate"
FULL = (80, 90)  # architectures that every case is compiled for
SMOKE = (89, 100)  # architectures that one case of every kernel is compiled for
SAMPLE = 32  # one in so many unchanged cases is compiled with --changed
SOURCE_DIGITS = 16  # of a digest, in the baseline
WANTS_ARCH = 90  # the architecture that CompileCase.wants speaks of
WORKERS = 2
SUMMARY = "Compiles every kernel that may ship, without a GPU, and holds the figures to a baseline."


@dataclass(frozen=True, slots=True)
class Scope:
    """Which cases a run is about, and where its baseline lies."""

    package: str
    archs: tuple[int, ...]
    only: str
    smoke: bool
    baseline: Path

    def holds(self, job: str) -> bool:
        """Whether a line of the baseline speaks of a case of this run."""
        return self.only in job and int(job.rpartition("_")[2]) in self.archs


@dataclass(frozen=True, slots=True)
class Result:
    """``figures`` is None where the case does not compile; ``problems`` say what is wrong."""

    job: Job
    source: str  # names what it is compiled from
    figures: Figures | None
    problems: tuple[str, ...]
    seconds: float  # of a processor

    def row(self) -> Row | None:
        return None if self.figures is None else {"source": self.source, **self.figures.row()}


def problems_of(case: CompileCase, arch: int, figures: Figures) -> list[str]:
    """What is wrong with machine code, whatever any baseline says."""
    found = []
    if figures.spills:
        found.append(f"spills {figures.spills} times ({figures.stack + figures.local} bytes)")
    if figures.doubles and FLOAT64 not in case.wants:
        found.append(f"mentions 64-bit floats {figures.doubles} times")
    if figures.shared > SHARED_LIMITS[arch]:
        found.append(f"takes {figures.shared} bytes of shared memory of {SHARED_LIMITS[arch]}")
    if arch == WANTS_ARCH:
        found += [f"has no {name}" for name in wanted_but_missing(case, figures)]
    return found


def run_job(job: Job, cache_folder: Path | None, held: Row | None = None) -> Result:
    """Compiles one case, or remembers what came of the same source before: ``held`` is a row of the
    baseline that may be believed if it is of this source."""
    start = _processor_seconds()
    case = _cases(job.module, job.arch)[job.case]
    source = _digest(case, job.arch)[:SOURCE_DIGITS]
    try:
        if held is not None and held.get("source") == source:
            figures = Figures(**{name: int(held[name]) for name in held if name != "source"})
        else:
            figures = _figures(case, job.arch, cache_folder)
        problems = problems_of(case, job.arch, figures)
    except NotCompiled as error:
        problem = f"does not compile: {error}"
        return Result(job, source, None, (problem,), _processor_seconds() - start)
    return Result(job, source, figures, tuple(problems), _processor_seconds() - start)


def sampled(job: Job) -> bool:
    """Whether ``--changed`` compiles the case even if it is unchanged. The same ones every time."""
    return int(hashlib.sha256(str(job).encode()).hexdigest(), 16) % SAMPLE == 0


def _processor_seconds() -> float:
    """Of this process and its assembler's: a busy machine does not make a case look dear."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


@cache
def _cases(module: str, arch: int) -> dict[str, CompileCase]:
    return cases_of(module, arch)


def _figures(case: CompileCase, arch: int, folder: Path | None) -> Figures:
    kept = None if folder is None else folder / f"{_digest(case, arch)}.json"
    if kept is not None and kept.exists():
        return Figures(**json.loads(kept.read_text()))
    with tempfile.TemporaryDirectory() as scratch:
        triton.knobs.cache.dir = scratch  # figures are kept here, machine code is not
        figures = compile_case(case, arch)
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        half = kept.with_suffix(f".{os.getpid()}")  # other runs may look for it meanwhile
        half.write_text(json.dumps(figures.row()))
        half.replace(kept)
    return figures


def _digest(case: CompileCase, arch: int) -> str:
    """Names the machine code: the source with all that it calls, the case, and the tools."""
    reader = Path(__file__).with_name("gate").joinpath("offline.py").read_text()
    facts = [
        triton.__version__,
        arch,
        reader,
        sources_of(case.fn),
        sorted(case.signature.items()),
        [(name, _fact(value)) for name, value in sorted(case.constexprs.items())],
        sorted(case.aligned),
        case.num_warps,
        case.num_stages,
    ]
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def _fact(value: object) -> object:
    return sources_of(value) if isinstance(value, JITCallable) else repr(value)


def jobs_for(scope: Scope) -> tuple[list[Job], list[str]]:
    """The cases to compile, and what keeps modules from being compiled.

    Of the architectures in SMOKE, one case a kernel.
    """
    jobs: list[Job] = []
    complaints: list[str] = []
    for module in launcher_modules(importlib.import_module(scope.package)):
        try:
            for arch in scope.archs:
                cases = cases_of(module, arch)
                if scope.smoke or arch not in FULL:
                    cases = representative(cases)
                jobs += [Job(module, name, arch) for name in cases]
        except Ungated as error:
            if scope.only in module:
                complaints.append(str(error))
    return [job for job in jobs if scope.only in str(job)], complaints


def run_jobs(jobs: Sequence[Job], cache_folder: Path | None, believed: Rows) -> list[Result]:
    """Compiles in worker processes, started afresh, and prints what is wrong as it is seen.

    A row of ``believed`` stands for a case that was compiled from the same source."""
    results = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(WORKERS, mp_context=context) as pool:
        for future in [
            pool.submit(run_job, job, cache_folder, believed.get(str(job))) for job in jobs
        ]:
            result = future.result()
            results.append(result)
            if result.problems:
                print(f"{result.job}: {'; '.join(result.problems)}", flush=True)
    return results


def print_summary(results: Sequence[Result], seconds: float) -> None:
    count = Counter(result.job.module for result in results)
    spent: Counter[str] = Counter()
    for result in results:
        spent[result.job.module] += round(1000 * result.seconds)
    for module in sorted(count):
        name = module.rpartition(".")[2]
        print(f"{name:24s} {count[module]:4d} cases {spent[module] / 1000:7.1f} s of a core")
    print(f"{len(results)} cases in {seconds:.1f} s, triton {triton.__version__}")


def check(scope: Scope, *, write: bool, changed: bool, cache_folder: Path | None) -> int:
    """Compiles, prints what there is to say, and returns the exit status."""
    start = time.perf_counter()
    baseline = _baseline(scope, write)
    jobs, complaints = jobs_for(scope)
    for complaint in complaints:
        print(complaint)
    by_name = {str(job): job for job in jobs}
    believed = {
        name: row
        for name, row in baseline.items()
        if changed and name in by_name and not sampled(by_name[name])
    }
    results = run_jobs(jobs, cache_folder, believed)
    print_summary(results, time.perf_counter() - start)
    now = {str(result.job): row for result in results if (row := result.row()) is not None}
    wrong = len(complaints) + sum(bool(result.problems) for result in results)
    if write:
        kept = {job: row for job, row in baseline.items() if not scope.holds(job)}
        write_baseline(scope.baseline, triton.__version__, kept | now)
        print(f"{scope.baseline.name} holds {len(kept | now)} cases, {len(now)} of them renewed")
    elif not scope.smoke:
        held = {job: row for job, row in baseline.items() if scope.holds(job)}
        if found := list(differences(held, now)):
            print(review(found))
            print(f"{len(found)} figures are not the baseline's; --write renews it")
            wrong += 1
    print("wrong" if wrong else "right")
    return 1 if wrong else 0


def _baseline(scope: Scope, write: bool) -> Rows:
    """What is compared with or kept; a run that renews everything keeps nothing."""
    renews_all = write and not scope.only and set(scope.archs) >= {*FULL, *SMOKE}
    if scope.smoke or renews_all:
        return {}
    return read_baseline(scope.baseline, triton.__version__)


def main(arguments: Sequence[str] | None = None) -> int:
    known = ", ".join(f"sm_{arch}" for arch in (*FULL, *SMOKE))
    parser = argparse.ArgumentParser(prog="python -m kernels.compile_gate", description=SUMMARY)
    parser.add_argument("--write", action="store_true", help="renew the baseline")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases with TEXT in their line")
    parser.add_argument("--arch", nargs="+", default=[], metavar="sm_XX", help=f"of {known}")
    parser.add_argument("--smoke", action="store_true", help="one case a kernel, no baseline")
    parser.add_argument(
        "--changed", action="store_true", help=f"what has changed, and one in {SAMPLE} of the rest"
    )
    parser.add_argument("--no-cache", action="store_true", help="compile even what is known")
    parser.add_argument("--package", default="kernels.gpu", help="whose modules are compiled")
    parser.add_argument("--baseline", type=Path, default=BASELINE, metavar="FILE")
    options = parser.parse_args(arguments)
    archs = tuple(int(name.removeprefix("sm_")) for name in options.arch) or (*FULL, *SMOKE)
    if set(archs) - {*FULL, *SMOKE}:
        parser.error(f"--arch: only {known} are checked")
    if options.smoke and options.write:
        parser.error("--smoke compares nothing, so that there is nothing to --write")
    if options.changed and (options.smoke or options.write):
        parser.error("--changed believes the baseline: neither --smoke nor --write goes with it")
    if interpreted():
        parser.error("Triton is told to interpret kernels (TRITON_INTERPRET); nothing compiles so")
    scope = Scope(options.package, archs, options.only, options.smoke, options.baseline)
    try:
        cache_folder = None if options.no_cache else CACHE
        return check(scope, write=options.write, changed=options.changed, cache_folder=cache_folder)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
