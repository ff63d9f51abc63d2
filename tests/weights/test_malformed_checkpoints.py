"""Every spoilt folder is refused at once, with a message that names what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.weights.folders import opened, write_good_folder
from tests.weights.malformed import MUTATIONS
from tests.weights.mutations import Mutation
from weights import families
from weights.checkpoint.folder import open_checkpoint
from weights.checkpoint.matching import match
from weights.errors import CheckpointError
from weights.loading.loader import LoadReport, load


def keep(weight: torch.Tensor, format: str, bias: torch.Tensor | None = None) -> torch.Tensor:
    return weight


def judge(folder: Path) -> None:
    """All that is said of a folder before torch is imported and a tensor is read."""
    checkpoint = open_checkpoint(folder)
    family = families.resolve(checkpoint.config)
    match(checkpoint, family, family.spec(checkpoint.config))


def serve(folder: Path) -> LoadReport:
    judge(folder)
    return load(*opened(folder), format="f32", pack=keep).report


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

    with pytest.raises(CheckpointError) as caught:
        (serve if mutation.in_bytes else judge)(folder)
    message = str(caught.value)

    assert [word for word in mutation.words if word not in message] == [], message
    assert len(message) < 1000
    assert "\n" not in message


@pytest.mark.parametrize(
    "mutation",
    [MUTATIONS["more_tensors_than_any_model_has"], MUTATIONS["header_of_nothing_but_lists"]]
    + [MUTATIONS[name] for name in MUTATIONS if name.startswith("index_names_a_million")],
    ids=lambda mutation: mutation.name,
)
def test_what_is_too_much_is_counted_before_it_is_parsed(
    tmp_path: Path, mutation: Mutation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A document of small values takes fifty times its bytes once it is parsed."""
    write_good_folder(tmp_path / "model", sharded=mutation.sharded)
    mutation.apply(tmp_path / "model")
    parsed = list[int]()
    monkeypatch.setattr(
        "weights.strict_json.json.loads",
        lambda text, **hooks: parsed.append(len(text)) or json.JSONDecoder(**hooks).decode(text),
    )
    with pytest.raises(CheckpointError):
        judge(tmp_path / "model")
    assert max(parsed) < 1000  # the configuration, and nothing of the file that is too much


def test_a_link_to_no_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "model").symlink_to("/mnt/models/gone")
    with pytest.raises(CheckpointError, match='is a link to "/mnt/models/gone", which is not'):
        judge(tmp_path / "model")


def test_there_are_enough_of_them() -> None:
    assert len(MUTATIONS) >= 40


def test_a_folder_of_gguf_files_is_told_what_is_served(tmp_path: Path) -> None:
    (tmp_path / "model-Q4_0.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match="GGUF files are not served; serve the folder of"):
        open_checkpoint(tmp_path)
