"""An answer depends on its request alone: not on the batch, chunks, caches or preemptions."""

from __future__ import annotations

from pathlib import Path

import checks
import pytest
from checks import Setting


@pytest.fixture(scope="module", params=checks.SPECS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checks.write(request.param, tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("block_size", [16, 64])
@pytest.mark.parametrize("name", checks.CHECKS)
def test_answers_are_equal(name: str, block_size: int, folder: Path) -> None:
    checks.CHECKS[name](Setting(folder, block_size))


@pytest.mark.parametrize("budget", [1, 7, 64])
def test_any_chunk_budget_gives_the_same_answers(budget: int, folder: Path) -> None:
    checks.chunked_equals_whole(Setting(folder), budget)


@pytest.mark.parametrize("every", [1, 2, 5])
def test_any_rhythm_of_preemption_gives_the_same_answers(every: int, folder: Path) -> None:
    checks.preempted_equals_not(Setting(folder), every, prefix_caching=every == 2)
