"""Every spoilt folder is refused at once, with a message that names what is wrong."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from tests.weights.folders import write_good_folder
from tests.weights.malformed import MUTATIONS
from tests.weights.mutations import Mutation
from weights import families
from weights.checkpoint import open_checkpoint
from weights.errors import CheckpointError
from weights.loader import LoadReport, load


def keep(weight: torch.Tensor, format: str, bias: torch.Tensor | None = None) -> torch.Tensor:
    return weight


def serve(folder: Path) -> LoadReport:
    checkpoint = open_checkpoint(folder)
    spec = families.resolve(checkpoint.config).spec(checkpoint.config)
    return load(checkpoint, spec, format="f32", pack=keep).report


@pytest.mark.parametrize(("sharded", "tied"), [(False, False), (True, False), (False, True)])
def test_the_folders_that_the_mutations_spoil_are_good(
    tmp_path: Path, sharded: bool, tied: bool
) -> None:
    write_good_folder(tmp_path, sharded=sharded, tied=tied)
    assert serve(tmp_path).skipped == ()


@pytest.mark.parametrize("mutation", MUTATIONS.values(), ids=MUTATIONS)
def test_a_malformed_checkpoint_is_refused(tmp_path: Path, mutation: Mutation) -> None:
    folder = tmp_path / "model"
    write_good_folder(folder, sharded=mutation.sharded, tied=mutation.tied)
    mutation.apply(folder)

    started = time.process_time()
    with pytest.raises(CheckpointError) as caught:
        serve(folder)
    message = str(caught.value)

    assert time.process_time() - started < 2.0
    assert [word for word in mutation.words if word not in message] == [], message
    assert len(message) < 1000
    assert "\n" not in message


def test_there_are_enough_of_them() -> None:
    assert len(MUTATIONS) >= 40
