"""Files that are not there, or not what they should be; an index that does not fit its shards."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tests.weights.folders import (
    INDEX,
    OTHER_SHARD,
    SHARD,
    WEIGHTS,
    append_tensor,
    edit_json,
    read_parts,
)
from tests.weights.mutations import NORM, Q_PROJ, Mutations

BAD_FILES = Mutations()


def _in_another_format(name: str, file: str) -> None:
    @BAD_FILES.mutation(file, "convert to safetensors", name=name)
    def only(folder: Path) -> None:
        (folder / WEIGHTS).rename(folder / file)


_in_another_format("pickle_only", "pytorch_model.bin")
_in_another_format("pth_only", "consolidated.00.pth")
_in_another_format("gguf_only", "model.gguf")
BAD_FILES.written(
    INDEX,
    "index_names_a_million_tensors_in_few_bytes",
    '{"weight_map":{' + '"a":"b",' * 1_000_000 + '"a":"b"}}',
    "values",
    "at most 196608",
    sharded=True,
)
BAD_FILES.written(INDEX, "index_not_json", "weight_map", "not valid JSON", sharded=True)
BAD_FILES.written(INDEX, "index_without_a_map", '{"metadata": {}}', "weight_map", sharded=True)


@BAD_FILES.mutation(WEIGHTS, "missing")
def no_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


@BAD_FILES.mutation(WEIGHTS, INDEX, sharded=True)
def single_beside_index(folder: Path) -> None:
    shutil.copy(folder / SHARD, folder / WEIGHTS)


@BAD_FILES.mutation(WEIGHTS, "cannot be opened")
def link_to_itself(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to(WEIGHTS)


def _link(path: Path, target: str) -> None:
    path.unlink()
    path.symlink_to(target)


@BAD_FILES.mutation("config.json: is a link to", '"../../blobs/3f', "not there", "cp -rL")
def snapshot_mounted_without_its_blobs(folder: Path) -> None:
    for path in folder.iterdir():
        _link(path, "../../blobs/3fa85f64")


@BAD_FILES.mutation(SHARD, "is a link to", "blobs", "models--", sharded=True)
def one_blob_was_deleted(folder: Path) -> None:
    _link(folder / SHARD, "../../blobs/0123")


@BAD_FILES.mutation('generation_config.json: is a link to "/mnt/gone.json"', "mount what")
def optional_file_is_a_link_to_nothing(folder: Path) -> None:
    _link(folder / "generation_config.json", "/mnt/gone.json")


@BAD_FILES.mutation(WEIGHTS, "regular file")
def weights_are_a_pipe(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    os.mkfifo(folder / WEIGHTS)


@BAD_FILES.mutation(SHARD, "regular file", sharded=True)
def shard_is_a_folder(folder: Path) -> None:
    (folder / SHARD).unlink()
    (folder / SHARD).mkdir()


def _point(folder: Path, file: object, tensor: str = Q_PROJ) -> None:
    """Makes the index say that one tensor lies in ``file``."""
    edit_json(folder, INDEX, lambda index: index["weight_map"].update({tensor: file}))


@BAD_FILES.mutation(OTHER_SHARD, "missing", sharded=True)
def shard_missing(folder: Path) -> None:
    (folder / OTHER_SHARD).unlink()


@BAD_FILES.mutation(INDEX, Q_PROJ, "outside", sharded=True)
def index_points_above(folder: Path) -> None:
    shutil.copy(folder / SHARD, folder.parent / "above.safetensors")
    _point(folder, "../above.safetensors")


@BAD_FILES.mutation(INDEX, Q_PROJ, "outside", sharded=True)
def index_points_to_an_absolute_path(folder: Path) -> None:
    _point(folder, "/etc/model.safetensors")


@BAD_FILES.mutation(INDEX, Q_PROJ, "outside", sharded=True)
def index_points_into_a_subfolder(folder: Path) -> None:
    _point(folder, "sub/model.safetensors")


@BAD_FILES.mutation(SHARD, "outside", sharded=True)
def shard_links_outside(folder: Path) -> None:
    outside = folder.parent / "outside.safetensors"
    (folder / SHARD).rename(outside)
    (folder / SHARD).symlink_to(outside)


@BAD_FILES.mutation(INDEX, Q_PROJ, sharded=True)
def index_names_a_pickle(folder: Path) -> None:
    _point(folder, "pytorch_model-00001-of-00002.bin")


@BAD_FILES.mutation(INDEX, Q_PROJ, sharded=True)
def index_points_to_a_number(folder: Path) -> None:
    _point(folder, 1)


@BAD_FILES.mutation(INDEX, "model.ghost.weight", sharded=True)
def index_names_a_tensor_that_the_shard_lacks(folder: Path) -> None:
    _point(folder, SHARD, "model.ghost.weight")


@BAD_FILES.mutation(INDEX, Q_PROJ, sharded=True)
def shard_holds_a_tensor_that_the_index_lacks(folder: Path) -> None:
    edit_json(folder, INDEX, lambda index: index["weight_map"].pop(Q_PROJ))


@BAD_FILES.mutation("also in", "model.norm.weight", sharded=True)
def tensor_in_two_shards(folder: Path) -> None:
    for file in (SHARD, OTHER_SHARD):
        header, _ = read_parts(folder / file)
        if NORM not in header:
            append_tensor(folder, NORM, bytes(128), [32], file=file)
            return


@BAD_FILES.mutation(INDEX, "at most 33554432", sharded=True)
def index_too_large(folder: Path) -> None:
    os.truncate(folder / INDEX, 40_000_000)


def _name_ghosts(folder: Path, count: int, file: str) -> None:
    ghosts = {f"ghost.{index}": file.format(index) for index in range(count)}
    edit_json(folder, INDEX, lambda index: index["weight_map"].update(ghosts))


@BAD_FILES.mutation(INDEX, "66021 tensors", "at most 65536", sharded=True)
def index_names_more_tensors_than_any_model_has(folder: Path) -> None:
    _name_ghosts(folder, 66_000, SHARD)


@BAD_FILES.mutation(INDEX, "2052 files", "at most 2048", sharded=True)
def index_names_more_files_than_any_model_has(folder: Path) -> None:
    _name_ghosts(folder, 2_049, "{}.safetensors")


@BAD_FILES.mutation(INDEX, "duplicate", Q_PROJ, sharded=True)
def index_names_a_tensor_twice(folder: Path) -> None:
    text = (folder / INDEX).read_text()
    (folder / INDEX).write_text(text.replace(f'"{Q_PROJ}"', f'"{Q_PROJ}": "x", "{Q_PROJ}"'))
