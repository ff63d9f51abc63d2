"""A Python process of its own, in which Triton compiles kernels though this one interprets them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def run_python(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """This interpreter in the repository's root, with ``variables`` beside this environment's;
    that of Triton's interpreter is not passed on."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment | variables,
        text=True,
        capture_output=True,
        check=False,
    )
