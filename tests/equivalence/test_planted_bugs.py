"""Every planted bug is noticed by the check that is said to notice it, and none without a bug."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from server.engine.invariants import InvariantError
from tests.equivalence import checks, workloads
from tests.equivalence.checks import Setting
from tests.equivalence.planted_bugs import BUGS
from tests.equivalence.planting import PlantedBug
from tests.execution import stepping
from tests.parity import oracle
from tests.parity.family_checkpoints import CASES, write_case
from weights.synthetic.checkpoint import write_checkpoint

IDS = list(workloads.prompt(50, 60))
LARGE_EPSILON = replace(
    checks.SPECS["llama"], norm=replace(checks.SPECS["llama"].norm, epsilon=0.05)
)

EPSILON = "llama with a large epsilon"
# A case of each, for what it alone has.
CASE_OF_FAMILY = {
    "nemotron": 0,  # half of each head turns; Layer norms with biases, stored less 1
    "stablelm": 2,  # norms of heads, each with weights of its own
    "hunyuan_v1_dense": 0,  # norms of heads that have turned
    "olmo": 0,  # clipped queries, keys and values
    "ministral3": 0,  # queries scaled by their position
    "apertus": 0,  # xIELU
}
FAMILIES = (*checks.SPECS, *checks.KINDS, EPSILON, *CASE_OF_FAMILY)


@dataclass(frozen=True)
class Checkpoint:
    """A folder, and the logits [len(IDS), V] that transformers gives for IDS on it."""

    folder: Path
    expected: torch.Tensor


def logits_parity(checkpoint: Checkpoint) -> None:
    got = stepping.all_logits(stepping.built(checkpoint.folder, max_model_len=256).runner, IDS)
    error = float((got - checkpoint.expected).abs().max() / checkpoint.expected.abs().max())
    assert error <= 1e-4


def scored_prompt_parity(checkpoint: Checkpoint) -> None:
    runner = stepping.built(checkpoint.folder, max_model_len=256).runner
    got = stepping.prompt_logprobs(runner, IDS, num_top=0)[:, 0]
    expected = checkpoint.expected.log_softmax(-1)[np.arange(len(IDS) - 1), IDS[1:]]
    assert np.abs(got - expected.numpy()).max() <= 1e-4


PARITY: dict[str, Callable[[Checkpoint], None]] = {
    "logits parity": logits_parity,
    "scored prompt parity": scored_prompt_parity,
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    folders = {name: tmp_path_factory.mktemp("checkpoint") for name in FAMILIES}
    for name, folder in folders.items():
        if name == EPSILON:
            write_checkpoint(LARGE_EPSILON, folder, seed=1)
        elif name in CASE_OF_FAMILY:
            write_case(CASES[name][CASE_OF_FAMILY[name]], folder)
        else:
            checks.write(name, folder)
    return {
        name: Checkpoint(folder, oracle.logits(oracle.load(folder), IDS))
        for name, folder in folders.items()
    }


def check(bug: PlantedBug, checkpoint: Checkpoint) -> None:
    if bug.caught_by in PARITY:
        PARITY[bug.caught_by](checkpoint)
    else:
        checks.CHECKS[bug.caught_by](Setting(checkpoint.folder))


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_the_bug_is_caught(
    bug: PlantedBug, checkpoints: dict[str, Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    bug.apply(monkeypatch)
    with pytest.raises((AssertionError, InvariantError)) as caught:
        check(bug, checkpoints[bug.family])
    assert "a step raised" not in str(caught.value)  # it is to answer wrongly, not to fail


def test_without_a_bug_parity_holds(checkpoints: dict[str, Checkpoint]) -> None:
    for checkpoint in checkpoints.values():
        for parity in PARITY.values():
            parity(checkpoint)


@pytest.mark.parametrize("family", checks.SPECS)
def test_the_checkpoints_are_sharp(family: str, checkpoints: dict[str, Checkpoint]) -> None:
    model = oracle.load(checkpoints[family].folder)
    assert oracle.relative_entropy(model, IDS) < 0.6
    assert len(set(oracle.greedy(model, IDS, 64))) >= 16
