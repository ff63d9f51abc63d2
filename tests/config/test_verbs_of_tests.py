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


@pytest.mark.parametrize("verb", ["test", "test-slow"])
@pytest.mark.parametrize(
    ("first", "second"), [(0, 0), (1, 0), (0, 1), (1, 1), (2, 5), (5, 0), (5, 5), (5, 1)]
)
def test_both_halves_run_and_either_fails_the_verb(
    verb: str, first: int, second: int, fakes: Path
) -> None:
    """pytest's 5 says that it found no test: ARGS may have chosen among the others."""
    command = ["make", verb, f"BIN={fakes}", "SETUP_TEST=", "ARGS=-k chosen"]
    code, error, calls = run(command, fakes, first, second)
    assert len(calls) == 2
    assert all(call.startswith("-m pytest") and call.endswith("-k chosen") for call in calls)
    assert "--ignore=tests/api" in calls[0]
    assert "--ignore=tests/kernels" not in calls[0]
    assert "--ignore=tests/kernels" in calls[1]
    assert "--ignore=tests/api" not in calls[1]
    failing = [half for half, code in (("first", first), ("second", second)) if code not in (0, 5)]
    assert (code != 0) == bool(failing)
    for half in ("first", "second"):
        assert (f"the {half} (" in error) == (half in failing)


@pytest.mark.parametrize("codes", [(0, 0, 0), (2, 0, 0), (0, 2, 0), (0, 0, 2), (2, 2, 2)])
def test_ci_runs_every_verb_and_is_red_if_one_is(codes: tuple[int, ...], fakes: Path) -> None:
    code, error, calls = run([".ci/run"], fakes, *codes, path=f"{fakes}:")
    assert calls == ["check", "test", "test-slow"]
    assert (code != 0) == any(codes)
    failed = [verb for verb, ended in zip(calls, codes, strict=True) if ended]
    assert (f"Failed: make {' '.join(failed)}\n" in error) == bool(failed)
