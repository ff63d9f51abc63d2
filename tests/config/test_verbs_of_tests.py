"""`make test`, `make test-slow` and CI run all that they consist of and fail if any of it fails."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")

# Stands for a program: writes its arguments down, and ends with the next of the codes given.
FAKE = """#!/bin/sh
echo "$@" >> "$CALLS"
exit $(echo $CODES | cut -d" " -f$(wc -l < "$CALLS"))
"""


@pytest.fixture
def fakes(tmp_path: Path) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("python", "make"):
        (folder / name).write_text(FAKE)
        (folder / name).chmod(0o755)
    (folder / "dpkg").write_text("#!/bin/sh\n")
    (folder / "dpkg").chmod(0o755)
    return folder


def run(command: list[str], fakes: Path, *codes: int, path: str = "") -> tuple[int, str, list[str]]:
    """(exit code, standard error, arguments of each call of a fake that ends with ``codes``)"""
    calls = fakes / "calls"
    calls.write_text("")
    environment = {
        "PATH": path + os.environ["PATH"],
        "CALLS": str(calls),
        "CODES": " ".join(map(str, codes)),
    }
    ended = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    return ended.returncode, ended.stderr, calls.read_text().splitlines()


@pytest.mark.parametrize(
    ("verb", "marks"), [("test", "not slow and not sweep"), ("test-slow", "slow")]
)
@pytest.mark.parametrize("ended", [0, 1, 2, 5])
def test_a_verb_fails_with_its_tests(verb: str, marks: str, ended: int, fakes: Path) -> None:
    """pytest's 5 says that it found no test."""
    command = ["make", verb, f"BIN={fakes}", "SETUP_TEST=", "ARGS=-k chosen"]
    code, _, (call,) = run(command, fakes, ended)
    assert call.startswith("-m pytest") and call.endswith(f"-m {marks} -k chosen")
    assert (code != 0) == (ended != 0)


@pytest.mark.parametrize("codes", [(0, 0, 0), (2, 0, 0), (0, 2, 0), (0, 0, 2), (2, 2, 2)])
def test_ci_runs_every_verb_and_is_red_if_one_is(codes: tuple[int, ...], fakes: Path) -> None:
    code, error, calls = run([".ci/run"], fakes, *codes, path=f"{fakes}:")
    assert calls == ["check", "test", "test-slow"]
    assert (code != 0) == any(codes)
    failed = [verb for verb, ended in zip(calls, codes, strict=True) if ended]
    assert (f"Failed: make {' '.join(failed)}\n" in error) == bool(failed)
