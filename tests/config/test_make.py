"""What make says before it downloads, and that README says the same."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def steps(verb: str, folder: Path) -> list[str]:
    """What ``make VERB`` would run where nothing is set up."""
    done = subprocess.run(
        ["make", "-n", verb, f"VENV={folder / 'env'}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize(("verb", "installs"), [("serve", 1), ("test", 1)])
def test_the_size_is_told_before_each_download(verb: str, installs: int, tmp_path: Path) -> None:
    told = 0
    for step in steps(verb, tmp_path):
        if "downloads:" in step:
            told += 1
            amount = re.search(r"downloads: (about \d+ MB)", step)
            assert amount and amount[1] in README, step
        elif "pip install" in step and "-e" in step:
            installs -= 1
            assert told
            told = 0
    assert installs == 0


def test_the_disk_that_it_takes_is_in_the_readme_too(tmp_path: Path) -> None:
    said = "\n".join(steps("test", tmp_path))
    for amount in ("1 GB", "2.8 GB"):
        assert amount in said
        assert amount in README.replace("\n", " ")
