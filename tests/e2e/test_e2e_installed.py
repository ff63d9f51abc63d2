"""A wheel installed where there is no checkout: the command, the demo model, the plan.

The environment is empty but for the wheel; what Quire depends on is seen through a path to the
outer environment, so that nothing is downloaded and no second torch is written.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import urllib.request
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILD = "from setuptools import build_meta; print(build_meta.build_wheel('wheels'))"
PACKAGES = ("server", "kernels", "weights", "loadtest")
MOST_WHEEL_BYTES = 16 << 20

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, with the setuptools that is here: no network, nothing left in the tree."""
    folder = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "wheels").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", BUILD], cwd=folder, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return folder / "wheels" / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def quire(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The installed command."""
    folder = tmp_path_factory.mktemp("installed") / "env"
    venv.create(folder, with_pip=False)
    (packages,) = folder.glob("lib/python3*/site-packages")
    (packages / "outer.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python")]
    done = subprocess.run(
        [*pip, "install", "--quiet", "--no-deps", "--no-index", "--ignore-installed", str(wheel)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return folder / "bin" / "quire"


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


def test_it_serves_the_demo_the_page_and_an_answer(quire: Path, nowhere: Path) -> None:
    process = subprocess.Popen(
        [quire, "serve", "--port", "0", "--threads", "1"],
        cwd=nowhere,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        first = process.stdout.readline()
        found = re.match(r"Quire serves quire-demo at (http://127\.0\.0\.1:\d+)", first)
        assert found, process.communicate(timeout=60)
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
    assert process.returncode == 0, errors
