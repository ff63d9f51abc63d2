"""A wheel installed where there is no checkout: the command, the demo model, the plan, and native
kernels that no compiler was needed for. It is the wheel of `make wheel`, as it would be published.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernels.cpu.native.levels import default_level
from tests.e2e import installations
from tests.e2e.installations import ROOT

MOST_WHEEL_BYTES = 16 << 20
NO_PROGRAMS = "/nonexistent"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(shutil.which("make") is None, reason="needs make"),
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """auditwheel has looked at which versions of which libraries its native kernels ask for."""
    folder = installations.copy_tree(tmp_path_factory.mktemp("source") / "quire")
    installations.run(["make", "wheel", f"PYTHON={sys.executable}"], 800, cwd=folder)
    (made,) = (folder / "dist").iterdir()
    kept = made.rename(tmp_path_factory.mktemp("wheel") / made.name)
    shutil.rmtree(folder)  # a compiler of 400 MB
    return kept


@pytest.fixture(scope="module")
def quire(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The installed command."""
    python = installations.make_environment(tmp_path_factory.mktemp("installed") / "env")
    installations.install(
        python, "--no-index", "--ignore-installed", str(wheel), path=str(python.parent)
    )
    return python.with_name("quire")


@pytest.fixture
def nowhere(tmp_path: Path) -> Iterator[Path]:
    """An empty working directory, still empty afterwards."""
    yield tmp_path
    assert list(tmp_path.iterdir()) == []


def test_the_wheel_is_small_and_carries_the_demo_with_its_licence(wheel: Path) -> None:
    assert wheel.stat().st_size < MOST_WHEEL_BYTES
    with zipfile.ZipFile(wheel) as built:
        names = set(built.namelist())
        for path in (ROOT / "weights" / "demo" / "checkpoint").iterdir():
            assert built.read(path.relative_to(ROOT).as_posix()) == path.read_bytes()
    assert {
        "weights/demo/CARD.md",
        "weights/demo/NOTICE",
        "weights/demo/LICENSE-PYTHON.txt",
    } <= names
    assert "kernels/tuning_table.json" in names
    assert not [name for name in names if name.startswith(("tests/", "weights/demo/heldout"))]


def test_the_wheel_is_for_every_python_of_old_systems(wheel: Path) -> None:
    assert wheel.name.endswith(f"-py3-none-manylinux_2_28_{platform.machine()}.whl")
    with zipfile.ZipFile(wheel) as built:
        names = set(built.namelist())
    assert {"kernels/cpu/native/quire_cpu.so", "kernels/cpu/native/tested_levels.toml"} <= names
    assert [name for name in names if ".libs/" in name or name.endswith(".o")] == []


def test_what_is_installed_is_what_runs(quire: Path, nowhere: Path) -> None:
    code = "import server, kernels.tuning as t; print(server.__file__); print(t.TABLE.is_file())"
    python = str(quire.with_name("python"))
    done = subprocess.run(
        [python, "-c", code], cwd=nowhere, capture_output=True, text=True, timeout=120
    )
    file, table = done.stdout.splitlines()
    assert Path(file).is_relative_to(quire.parents[1])
    assert table == "True"


def test_it_plans_the_demo_and_a_published_shape(quire: Path, nowhere: Path) -> None:
    for arguments in ([], ["llama-3.1-8b", "--device", "l4"]):
        done = subprocess.run(
            [quire, "plan", *arguments], cwd=nowhere, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        name = arguments[0] if arguments else "quire-demo"
        assert done.stdout.startswith(f"{name} on "), done.stdout


def test_it_serves_the_demo_natively_the_page_and_an_answer(quire: Path, nowhere: Path) -> None:
    report = installations.serve_once(quire, nowhere, "--backend", "native", path=NO_PROGRAMS)
    assert f"({default_level().upper()})" in report
    assert "backend       native" in report
