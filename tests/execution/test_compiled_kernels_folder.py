"""Where the kernels compiled for a GPU are kept, and what is said when nothing can be."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from server.errors import StartupError
from server.execution.device import compiled_kernels_folder

ROOT = Path(__file__).parents[2]

# Two starts, each a fork of a process that has imported what both need and compiled nothing.
COMPILE_TWICE = """
import os
from pathlib import Path

import triton, triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from server.execution.device import compiled_kernels_folder

@triton.jit
def twice(x):
    tl.store(x, 2 * tl.load(x))

def start():
    print(compiled_kernels_folder(), flush=True)
    triton.compile(ASTSource(twice, {"x": "*fp32"}, {}), target=GPUTarget("cuda", 90, 32))
    for path in sorted(Path(compiled_kernels_folder()).rglob("*.cubin")):
        print(path, path.stat().st_mtime_ns, flush=True)

for _ in range(2):
    child = os.fork()
    if not child:
        start()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""


@pytest.fixture
def triton() -> ModuleType:
    """Not imported with this module: tests of kernels decide first whether it interprets."""
    return pytest.importorskip("triton")


def test_it_is_tritons_own_and_made_if_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, triton: ModuleType
) -> None:
    folder = tmp_path / "some" / "where"
    monkeypatch.setattr(triton.knobs.cache, "dir", str(folder))
    assert compiled_kernels_folder() == str(folder)
    assert list(folder.iterdir()) == []


def test_a_folder_that_cannot_be_is_refused_with_the_variable_that_names_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, triton: ModuleType
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path / "file"))
    with pytest.raises(StartupError, match=r"file: File exists\. .*TRITON_CACHE_DIR"):
        compiled_kernels_folder()


def test_a_folder_that_may_not_be_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, triton: ModuleType
) -> None:
    if os.geteuid() == 0:
        monkeypatch.setattr(triton.knobs.cache, "dir", "/proc/sys")  # not even root's
    else:
        tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
        monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path))
    with pytest.raises(StartupError, match="cannot be kept in"):
        compiled_kernels_folder()


@pytest.mark.usefixtures("triton")
def test_a_later_start_finds_what_an_earlier_one_compiled(tmp_path: Path) -> None:
    script = tmp_path / "start.py"  # a file: Triton reads the kernel's source
    script.write_text(COMPILE_TWICE)
    folder = tmp_path / "kernels"
    environment = {**os.environ, "TRITON_CACHE_DIR": str(folder), "PYTHONPATH": str(ROOT)}
    environment.pop("TRITON_INTERPRET", None)
    ran = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    _, first, later = ran.stdout.split(f"{folder}\n")
    assert ".cubin " in first
    assert later == first
