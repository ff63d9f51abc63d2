"""``make mutants``: plants each fault in a copy of the tree and runs the nearest tests on it.

A fault is killed when a test fails, or does not end within the bound. Whatever survives is a hole
in the tests, or changes nothing that a user could see; the list then says why. Every set of tests
is run without a fault first: one that fails by itself kills nothing.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.mutants.faults import ROOT, Fault, read_faults

WANTED = 0.95  # of the faults that are not equivalent
BOUND_S = 300.0  # for one run of tests; a test has its own bound beside it
_COPIED = ("server", "kernels", "weights", "loadtest", "deploy", "tests", "docs")


def copy_of_the_tree(folder: Path) -> None:
    """What the tests read, caches left behind."""
    ignore = shutil.ignore_patterns("__pycache__", ".pytest_cache")
    for name in _COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy2(path, folder / path.name)


def run_tests(folder: Path, tests: Sequence[str]) -> str:
    """passed, failed or too long."""
    options = ("-x", "-q", "-p", "no:cacheprovider", "-m", "not slow and not sweep")
    command = [sys.executable, "-B", "-m", "pytest", *options, *tests]
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, timeout=BOUND_S, check=False
        )
    except subprocess.TimeoutExpired:
        return "too long"
    return "passed" if done.returncode == 0 else "failed"


def outcome_of(fault: Fault, folder: Path) -> str:
    """killed, killed by time, or survived."""
    path = folder / fault.file
    text = path.read_text(encoding="utf-8")
    path.write_text(fault.planted(text), encoding="utf-8")
    try:
        result = run_tests(folder, fault.tests)
    finally:
        path.write_text(text, encoding="utf-8")
    return {"passed": "survived", "failed": "killed", "too long": "killed by time"}[result]


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="make mutants", description=__doc__)
    parser.add_argument("--only", default="", help="faults with this in their name (engine/3)")
    chosen = [f for f in read_faults() if parser.parse_args(arguments).only in f.name]
    with tempfile.TemporaryDirectory(prefix="quire-mutants-") as name:
        folder = Path(name)
        copy_of_the_tree(folder)
        sound = {
            tests: run_tests(folder, tests) for tests in dict.fromkeys(f.tests for f in chosen)
        }
        for tests, result in sound.items():
            if result != "passed":
                print(f"without a fault, {result}: {' '.join(tests)}", file=sys.stderr)
        if set(sound.values()) - {"passed"}:
            return 2
        outcomes = {fault: _shown(fault, folder) for fault in chosen}
    return _summary(outcomes)


def _shown(fault: Fault, folder: Path) -> str:
    started = time.monotonic()
    outcome = outcome_of(fault, folder)
    note = f"  (equivalent: {fault.equivalent})" if fault.equivalent else ""
    took = time.monotonic() - started
    print(f"{fault.name:<14}{outcome:<15}{took:5.0f} s  {fault.sees}{note}", flush=True)
    return outcome


def _summary(outcomes: dict[Fault, str]) -> int:
    real = {fault: outcome for fault, outcome in outcomes.items() if not fault.equivalent}
    survived = [fault for fault, outcome in real.items() if outcome == "survived"]
    killed = len(real) - len(survived)
    print(
        f"\n{killed} of {len(real)} killed, {len(survived)} survived, "
        f"{len(outcomes) - len(real)} equivalent; {WANTED:.0%} wanted"
    )
    for fault in survived:
        print(f"survived: {fault.name} in {fault.file}: {fault.sees}")
    for fault, outcome in outcomes.items():
        if fault.equivalent and outcome != "survived":
            print(f"called equivalent and {outcome}: {fault.name}")
    return int(killed < WANTED * len(real))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
