"""A fresh clone installed where no program is found, so no C compiler either: it serves, and says
what it lacks. With a compiler from PyPI beside Python it has native kernels after all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from server.memory.backends.native_cpu import NATIVE
from tests.e2e import installations

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

NO_PROGRAMS = "/nonexistent"
LACKS = "its kernels were not built: the installation found no C compiler"


def install_the_clone(python: Path, clone: Path) -> str:
    """In isolation, as `make serve` does: with setuptools from an index."""
    return installations.install(python, "--editable", str(clone), path=NO_PROGRAMS)


def test_a_clone_serves_without_a_compiler_and_natively_with_one_from_pypi(tmp_path: Path) -> None:
    clone = installations.copy_tree(tmp_path / "clone")
    library = clone / "kernels" / "cpu" / "native" / "quire_cpu.so"
    python = installations.make_environment(tmp_path / "env")
    quire = python.with_name("quire")

    install_the_clone(python, clone)
    assert not library.exists()
    report = installations.serve_once(quire, tmp_path, path=NO_PROGRAMS)
    assert "backend       torch" in report
    if NATIVE.preference is not None:  # then the report says why it does not serve
        assert LACKS in report
    refused = subprocess.run(
        [quire, "serve", "--backend", "native", "--port", "0"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert refused.returncode != 0 and LACKS in refused.stderr

    tools = tmp_path / "tools"
    installations.run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--target", str(tools)),
            *("--disable-pip-version-check", "ziglang", "-c", str(clone / "constraints.txt")),
        ],
        600,
    )
    installations.see(tmp_path / "env", tools)
    install_the_clone(python, clone)
    assert library.is_file()
    report = installations.serve_once(quire, tmp_path, "--backend", "native", path=NO_PROGRAMS)
    assert "backend       native" in report
