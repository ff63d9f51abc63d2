"""The demo model's figure, measured through a server, is the one on its card."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_served_figure_is_the_cards_and_below_xz() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "weights.demo.score", "--serve"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr  # 1: not below xz
    measured = re.search(r"model: ([\d.]+) bits per byte", done.stdout)
    card = (ROOT / "weights" / "demo" / "CARD.md").read_text(encoding="utf-8")
    written = re.search(r"Held out \| \*\*([\d.]+) bits per byte", card)
    assert measured is not None
    assert written is not None
    assert float(measured[1]) == pytest.approx(float(written[1]), abs=0.002)
