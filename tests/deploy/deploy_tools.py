"""Tools that are no Python packages: a test without them is skipped, but in CI it fails."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import pytest

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


def do_without(reason: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(f"{reason}; in CI this is no excuse")
    pytest.skip(reason)


def needed(tool: str, package: str) -> str:
    """Its path."""
    found = shutil.which(tool)
    if found is None:
        do_without(f"{tool} is not installed (Debian's package {package} has it)")
    return found


def run(command: Sequence[str | Path], *, stdin: bytes | None = None, seconds: float = 60) -> str:
    """Its output, both streams. Fails where its exit code is not 0."""
    done = subprocess.run(
        [str(part) for part in command],
        input=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=seconds,
        check=False,
    )
    output = done.stdout.decode()
    assert done.returncode == 0, f"{command[0]} ended with {done.returncode}:\n{output}"
    return output
