"""An answer depends on its request alone: not on the batch, chunks, caches or preemptions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.equivalence import checks, workloads
from tests.equivalence.checks import Setting
from tests.parity import oracle

SEEDS = range(4)


@pytest.fixture(scope="module", params=checks.SPECS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checks.write(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def settings(folder: Path) -> dict[int, Setting]:
    """By block size; plain runs are made once each."""
    return {size: Setting(folder, size, known={}) for size in (16, 64)}


@pytest.mark.parametrize("block_size", [16, 64])
@pytest.mark.parametrize("name", checks.CHECKS)
def test_answers_are_equal(name: str, block_size: int, settings: dict[int, Setting]) -> None:
    checks.CHECKS[name](settings[block_size])


@pytest.fixture(scope="module")
def on_two_threads(folder: Path) -> Setting:
    """Its plain runs are made once too, on two threads as the others of its tests are."""
    return Setting(folder, 16, known={})


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("name", checks.CHECKS)
def test_answers_are_equal_on_several_threads(name: str, on_two_threads: Setting) -> None:
    """Tests compute on one thread each, so that several can run; a server computes on many."""
    checks.CHECKS[name](on_two_threads)


@pytest.mark.parametrize("budget", [1, 64])
def test_any_chunk_budget_gives_the_same_answers(budget: int, settings: dict[int, Setting]) -> None:
    checks.chunked_equals_whole(settings[16], budget)


def test_a_preemption_every_step_gives_the_same_answers(settings: dict[int, Setting]) -> None:
    checks.preempted_equals_not(settings[16], every=1, prefix_caching=True)


def test_a_plain_answer_is_the_exact_one_up_to_rounding(settings: dict[int, Setting]) -> None:
    checks.near_the_exact_answer(settings[16])


def test_no_request_is_longer_than_rounding_is_reckoned_for() -> None:
    lengths = [
        len(request.prompt_token_ids) + request.sampling.max_tokens
        for make in (workloads.mixed, workloads.prefixed, workloads.growing)
        for request in [*make(), *workloads.several_choices()]
    ]
    assert max(lengths) == workloads.LONGEST


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("family", checks.SPECS)
def test_the_checkpoints_are_sharp(family: str, seed: int, tmp_path: Path) -> None:
    """Else a wrong mask or position would change nothing that the checks see."""
    model = oracle.load(checks.write(family, tmp_path, seed=seed))
    ids = list(workloads.prompt(1, 37))
    output = oracle.greedy(model, ids, 64)
    assert oracle.relative_entropy(model, ids) < 0.6
    assert len(set(output)) >= 16


def answers_are_equal(setting: Setting) -> None:
    """By every check, in chunks of every kind of size, and preempted at every kind of distance."""
    for check in checks.CHECKS.values():
        check(setting)
    for budget in (1, 2, 3, 7, 16, 17, 64, 100):
        checks.chunked_equals_whole(setting, budget)
    for every in (1, 2, 3, 5):
        checks.preempted_equals_not(setting, every, prefix_caching=every % 2 == 1)


@pytest.mark.slow
@pytest.mark.parametrize("family", checks.SPECS)
def test_answers_are_equal_on_another_checkpoint(family: str, tmp_path: Path) -> None:
    """Another one, and other blocks, than those of `make test`."""
    folder = checks.write(family, tmp_path, seed=1)
    checks.no_choice_is_within_rounding(Setting(folder, known={}))
    answers_are_equal(Setting(folder, 32, known={}))


@pytest.mark.sweep
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("family", checks.SPECS)
def test_answers_are_equal_on_many_checkpoints(family: str, seed: int, tmp_path: Path) -> None:
    folder = checks.write(family, tmp_path, seed=seed)
    plain = Setting(folder, known={})
    checks.near_the_exact_answer(plain)
    checks.no_choice_is_within_rounding(plain)
    for block_size in (16, 32, 64):
        answers_are_equal(Setting(folder, block_size, known={}))
