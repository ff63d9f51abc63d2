"""``make mutants``: plants each fault in a copy of the tree and runs the nearest tests on it.

A fault is killed when a test fails, which is then named, or when the tests do not end within many
times what they take without it. Whatever survives is a hole in the tests, or changes nothing that
a user could see; the list then says why. Every set of tests is run without a fault first: one that
fails by itself kills nothing. ``--jobs`` faults are tried at a time, each in a copy of its own;
those with the same tests follow each other.
"""

from __future__ import annotations

import argparse
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tests.mutants.faults import ROOT, Fault, read_faults

WANTED = 0.95  # of the faults that are not equivalent
BOUND_S = 1200.0  # for a run without a fault; a test has its own bound beside it
SLOWER, LEAST_BOUND_S = 10.0, 300.0  # what a run with a fault may take beside the one without
_FIRST_FAILED = re.compile(r"^(FAILED|ERROR) \S.*$", re.MULTILINE)  # of pytest's summary
T = TypeVar("T")
R = TypeVar("R")
_COPIED = ("server", "kernels", "weights", "loadtest", "deploy", "tests", "docs")


@dataclass(frozen=True, slots=True)
class Run:
    """What pytest said: ``passed``, ``failed`` or ``too long``, after how many seconds, and the
    first test that failed where one did."""

    result: str
    seconds: float
    failed: str = ""


def copy_of_the_tree(folder: Path) -> None:
    """What the tests read, caches left behind."""
    ignore = shutil.ignore_patterns("__pycache__", ".pytest_cache")
    for name in _COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy2(path, folder / path.name)


def run_tests(folder: Path, tests: Sequence[str], bound_s: float = BOUND_S) -> Run:
    """Past the bound pytest ends with whatever it started: it leads a process group."""
    options = ("-x", "-q", "-p", "no:cacheprovider", "-m", "not slow and not sweep")
    command = [sys.executable, "-B", "-m", "pytest", *options, *tests]
    started = time.monotonic()
    with subprocess.Popen(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            said, _ = process.communicate(timeout=bound_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return Run("too long", time.monotonic() - started)
    seconds = time.monotonic() - started
    if process.returncode == 0:
        return Run("passed", seconds)
    first = _FIRST_FAILED.search(said)
    return Run("failed", seconds, first[0].partition(" - ")[0] if first else "pytest itself")


def outcome_of(fault: Fault, folder: Path, bound_s: float = BOUND_S) -> tuple[str, Run]:
    """killed, killed by time, or survived; and the run that shows it."""
    path = folder / fault.file
    text = path.read_text(encoding="utf-8")
    path.write_text(fault.planted(text), encoding="utf-8")
    try:
        run = run_tests(folder, fault.tests, bound_s)
    finally:
        path.write_text(text, encoding="utf-8")
    return {"passed": "survived", "failed": "killed", "too long": "killed by time"}[run.result], run


class Copies:
    """Copies of the tree, on each of which one run of tests goes on at a time. A context manager:
    they are deleted at its end."""

    def __init__(self, count: int) -> None:
        self._idle: queue.SimpleQueue[Path] = queue.SimpleQueue()
        self._stack = ExitStack()
        self._pool = ThreadPoolExecutor(count)
        self._count = count

    def __enter__(self) -> Copies:
        for _ in range(self._count):
            name = tempfile.TemporaryDirectory(prefix="quire-mutants-")
            folder = Path(self._stack.enter_context(name))
            copy_of_the_tree(folder)
            self._idle.put(folder)
        self._stack.enter_context(self._pool)
        return self

    def __exit__(self, *raised: object) -> None:
        self._stack.close()

    def each(self, run: Callable[[T, Path], R], over: Iterable[T]) -> Iterator[R]:
        """``run(one, folder)`` of each, in the order of ``over``."""

        def alone(one: T) -> R:
            folder = self._idle.get()
            try:
                return run(one, folder)
            finally:
                self._idle.put(folder)

        return self._pool.map(alone, over)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="make mutants", description=__doc__)
    parser.add_argument("--only", default="", help="faults with this in their name (engine/3)")
    parser.add_argument("--jobs", type=int, default=1, help="faults tried at a time (1)")
    options = parser.parse_args(arguments)
    chosen = [fault for fault in read_faults() if options.only in fault.name]
    sets = list(dict.fromkeys(fault.tests for fault in chosen))
    started = time.monotonic()
    with Copies(options.jobs) as copies:
        sound: dict[tuple[str, ...], float] = {}
        runs = copies.each(lambda tests, folder: run_tests(folder, tests), sets)
        for tests, run in zip(sets, runs, strict=True):
            if run.result == "passed":
                sound[tests] = run.seconds
            else:
                print(f"without a fault, {run.result} {run.failed}: {' '.join(tests)}", flush=True)

        def tried(fault: Fault, folder: Path) -> tuple[str, Run]:
            return outcome_of(fault, folder, max(LEAST_BOUND_S, SLOWER * sound[fault.tests]))

        faults = [fault for tests in sound for fault in chosen if fault.tests == tests]
        outcomes: dict[Fault, str] = {}
        for fault, (outcome, run) in zip(faults, copies.each(tried, faults), strict=True):
            outcomes[fault] = outcome
            _show(fault, outcome, run)
    result = _summary(outcomes, time.monotonic() - started)
    return 2 if len(sound) < len(sets) else result


def _show(fault: Fault, outcome: str, run: Run) -> None:
    print(f"{fault.name:<14}{outcome:<15}{run.seconds:5.0f} s  {fault.sees}")
    if fault.equivalent:
        print(f"{'':14}equivalent: {fault.equivalent}")
    if run.failed:
        print(f"{'':14}{run.failed}")
    sys.stdout.flush()


def _summary(outcomes: dict[Fault, str], seconds: float) -> int:
    real = {fault: outcome for fault, outcome in outcomes.items() if not fault.equivalent}
    survived = [fault for fault, outcome in real.items() if outcome == "survived"]
    killed = len(real) - len(survived)
    print(
        f"\n{killed} of {len(real)} killed, {len(survived)} survived, "
        f"{len(outcomes) - len(real)} equivalent; {WANTED:.0%} wanted; {seconds / 60:.0f} minutes"
    )
    for fault in survived:
        print(f"survived: {fault.name} in {fault.file}: {fault.sees}")
    for fault, outcome in outcomes.items():
        if fault.equivalent and outcome != "survived":
            print(f"called equivalent and {outcome}: {fault.name}")
    return int(killed < WANTED * len(real))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
