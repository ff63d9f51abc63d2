"""Quire installed into environments of its own, from copies of this tree.

An environment is empty but for Quire; what that depends on is seen through a path to the outer one,
so that nothing is downloaded and no second torch is written.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
import urllib.request
import venv
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PACKAGES = ("server", "kernels", "weights", "loadtest")
FILES = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "constraints.txt", "Makefile")
_BUILT = ("__pycache__", "*.so")


def copy_tree(folder: Path) -> Path:
    """What a clone has of the files that an installation reads; nothing is left in the tree."""
    folder.mkdir()
    for name in FILES:
        shutil.copy(ROOT / name, folder)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns(*_BUILT))
    return folder


def make_environment(folder: Path) -> Path:
    """Its python."""
    venv.create(folder, with_pip=False)
    see(folder, Path(sysconfig.get_path("purelib")))
    return folder / "bin" / "python"


def see(environment: Path, packages: Path) -> None:
    """The environment finds what is installed in ``packages``, too."""
    (own,) = environment.glob("lib/python3*/site-packages")
    with (own / "outer.pth").open("a") as paths:
        paths.write(f"{packages}\n")


def run(command: list[str], seconds: float = 120, **options: Any) -> str:
    """Both streams of a command that must end with 0."""
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds,
        check=False,
        **options,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def install(python: Path, *arguments: str, path: str | None = None) -> str:
    """What pip said. ``path`` instead of the variable of that name."""
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps"]
    variables = os.environ | ({} if path is None else {"PATH": path})
    return run([*pip, "--disable-pip-version-check", *arguments], 600, env=variables)


def serve_once(quire: Path, folder: Path, *flags: str, path: str | None = None) -> str:
    """Starts a server in ``folder``, asks it for four tokens and its page, and ends it. What it
    printed before the first request: the report."""
    process = subprocess.Popen(
        [quire, "serve", "--port", "0", "--threads", "1", *flags],
        cwd=folder,
        env=os.environ | ({} if path is None else {"PATH": path}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    watchdog = threading.Timer(120, process.kill)
    watchdog.start()
    report: list[str] = []
    try:
        while not (report and report[-1].startswith("  try:")):
            line = process.stdout.readline()
            assert line, process.communicate(timeout=60)
            report.append(line)
        found = re.match(r"Quire serves quire-demo at (http://127\.0\.0\.1:\d+)", report[0])
        assert found, report
        asked = urllib.request.Request(
            f"{found[1]}/v1/completions",
            json.dumps({"prompt": "import ", "max_tokens": 4}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(asked, timeout=60) as answer:
            assert json.load(answer)["usage"]["completion_tokens"] > 0
        with urllib.request.urlopen(f"{found[1]}/", timeout=60) as page:
            assert b"<html" in page.read()
    finally:
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
        watchdog.cancel()
    assert process.returncode == 0, errors
    return "".join(report)
