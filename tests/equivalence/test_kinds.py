"""What llama, gpt2 and bloom have not: windows and caps, norms elsewhere, blocks side by side,
layers that do not turn. Their answers depend on the request alone, too."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.equivalence import checks, workloads
from tests.equivalence.checks import Setting
from tests.parity import oracle


@pytest.fixture(scope="module", params=checks.KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checks.write(request.param, tmp_path_factory.mktemp("kind"))


@pytest.fixture(scope="module")
def setting(folder: Path) -> Setting:
    """Its plain runs are made once each."""
    return Setting(folder, known={})


# Windows meet caches and preemptions; what else a kind has is done to each token, whatever the way.
# `make test-slow` has every check of every kind in other blocks.
WINDOWS = "windows, caps, four norms"
OF_WINDOWS = ("batched equals alone", "cached equals uncached", "preempted equals not")


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        *((kind, "chunked equals whole") for kind in checks.KINDS),
        *((WINDOWS, name) for name in OF_WINDOWS),
    ],
    indirect=["folder"],
)
def test_answers_are_equal(name: str, setting: Setting) -> None:
    checks.CHECKS[name](setting)


def test_the_checkpoint_is_sharp(folder: Path) -> None:
    model = oracle.load(folder)
    ids = list(workloads.prompt(1, 37))
    assert oracle.relative_entropy(model, ids) < 0.6
    assert len(set(oracle.greedy(model, ids, 64))) >= 16


@pytest.mark.slow
def test_plain_answers_are_the_exact_ones_up_to_rounding(setting: Setting) -> None:
    checks.near_the_exact_answer(setting)
    checks.no_choice_is_within_rounding(setting)


@pytest.mark.slow
def test_answers_are_equal_in_other_blocks_and_chunks(folder: Path) -> None:
    setting = Setting(folder, 64, known={})
    for check in checks.CHECKS.values():
        check(setting)
    for budget in (1, 17):
        checks.chunked_equals_whole(setting, budget)
    checks.preempted_equals_not(setting, every=1, prefix_caching=True)
