"""What tests of the runner share: a small checkpoint, and runners of it on either device."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from server.execution.model_runner import ModelRunner
from tests.equivalence import checks
from tests.execution.late_plans import Late


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checks.write("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture
def late(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Late:
    return Late(folder, monkeypatch)


@pytest.fixture(params=["cpu", "late"])
def runner(request: pytest.FixtureRequest, late: Late) -> ModelRunner:
    return late.cpu_runner() if request.param == "cpu" else late.build().runner


@pytest.fixture
def keeps_threads() -> Iterator[None]:
    """A bench sets torch's threads for its process, which here is everybody's."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
