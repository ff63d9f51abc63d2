"""An answer depends on its request alone: not on the batch, chunks, caches or preemptions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.equivalence import checks, harness, workloads
from tests.equivalence.checks import Setting
from tests.parity import oracle

SEEDS = range(4)
SEED = 1  # of the checkpoints that are used here; those with other seeds are the sweep's


def in_turn(first: int) -> list[Any]:
    """Every check on one family, the next check on the next; with every family is the sweep's."""
    families = list(checks.SPECS)
    return [
        pytest.param(
            family,
            name,
            id=f"{family}-{name}",
            marks=() if family == families[(first + turn) % len(families)] else pytest.mark.sweep,
        )
        for turn, name in enumerate(checks.CHECKS)
        for family in families
    ]


@pytest.fixture(scope="module", params=checks.SPECS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checks.write(request.param, tmp_path_factory.mktemp(request.param), seed=SEED)


@pytest.fixture(scope="module")
def settings(folder: Path) -> dict[int, Setting]:
    """By block size. Plain runs are made once, whatever the blocks and the threads of the other
    side: an answer does not depend on these either."""
    known: dict[tuple[str, ...], harness.Run] = {}
    return {size: Setting(folder, size, known) for size in (16, 64)}


@pytest.mark.parametrize("name", checks.CHECKS)
def test_answers_are_equal(name: str, settings: dict[int, Setting]) -> None:
    checks.CHECKS[name](settings[16])


@pytest.mark.parametrize(("folder", "name"), in_turn(0), indirect=["folder"])
def test_answers_are_equal_in_blocks_of_64_tokens(name: str, settings: dict[int, Setting]) -> None:
    checks.CHECKS[name](settings[64])


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(("folder", "name"), in_turn(1), indirect=["folder"])
def test_answers_are_equal_on_several_threads(name: str, settings: dict[int, Setting]) -> None:
    """Tests compute on one thread each, so that several can run; a server computes on many."""
    checks.CHECKS[name](settings[16])


@pytest.mark.parametrize(
    ("folder", "budget"), [("llama", 1), ("gpt2", 64), ("bloom", 1)], indirect=["folder"]
)
def test_any_chunk_budget_gives_the_same_answers(budget: int, settings: dict[int, Setting]) -> None:
    """`make test-slow` has many more budgets, on each."""
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


@pytest.mark.parametrize(
    "seed", [pytest.param(seed, marks=() if seed == SEED else pytest.mark.sweep) for seed in SEEDS]
)
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
    folder = checks.write(family, tmp_path, seed=SEED)
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
