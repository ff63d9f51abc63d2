"""The demo model's figure, measured through a server, is the one on its card."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from weights.demo.corpus import read_heldout
from weights.demo.own_server import own_server
from weights.demo.score import CHECKPOINT, document_windows, first_model, offline, served
from weights.demo.tokenizer import load_tokenizer

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_a_server_scores_windows_as_the_trainers_model_does() -> None:
    """One window in ten of the held-out files, from all of them; with a cache in float32, as the
    trainer's model has its keys and values."""
    texts = [document.text for document in read_heldout()]
    work = document_windows(load_tokenizer(CHECKPOINT), texts, 1024, 512)[::10]
    with own_server(CHECKPOINT, "--dtype", "float32") as url:
        answered = list(map(served(url, first_model(url, 60.0), 60.0), work))
    expected = list(map(offline(CHECKPOINT), work))
    assert len(expected) > 10
    assert answered == pytest.approx(expected, rel=1e-4)


@pytest.mark.sweep
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
