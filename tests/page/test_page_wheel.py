"""A built wheel carries the page, byte for byte."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "server" / "api" / "ui"
BUILD = "from setuptools import build_meta; build_meta.build_wheel('wheels')"


def test_the_wheel_has_every_file_of_the_page(tmp_path: Path) -> None:
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "server", tmp_path / "server", ignore=_all_but_the_page)
    (tmp_path / "wheels").mkdir()
    result = subprocess.run(
        [sys.executable, "-c", BUILD], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
    (wheel,) = (tmp_path / "wheels").glob("*.whl")
    with zipfile.ZipFile(wheel) as built:
        for path in PAGE.iterdir():
            if path.is_file():
                name = path.relative_to(ROOT).as_posix()
                assert built.read(name) == path.read_bytes(), name


def _all_but_the_page(folder: str, names: list[str]) -> list[str]:
    """Keeps the copy small: packages stay packages, of their modules only the page's."""
    inside = Path(folder).resolve().is_relative_to(PAGE)
    kept = {"__init__.py"} | ({"api", "ui"} if not inside else set(names))
    return [name for name in names if name not in kept or name == "__pycache__"]
