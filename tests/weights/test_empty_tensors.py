"""Empty tensors take no bytes: they may lie at any seam of a file, whatever their order in it."""

from __future__ import annotations

import itertools
import json
import struct
from pathlib import Path

import pytest

from weights.checkpoint.safetensors_header import read_header
from weights.errors import CheckpointError

ENTRIES = {
    "first": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]},
    "second": {"dtype": "U8", "shape": [4], "data_offsets": [4, 8]},
    "at the beginning": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]},
    "where the second begins": {"dtype": "F32", "shape": [3, 0], "data_offsets": [4, 4]},
}


def written(folder: Path, names: tuple[str, ...], **changes: object) -> Path:
    header = json.dumps({name: ENTRIES[name] for name in names} | changes).encode()
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    return path


@pytest.mark.parametrize("names", list(itertools.permutations(ENTRIES)))
def test_an_empty_tensor_may_begin_where_a_full_one_does(
    names: tuple[str, ...], tmp_path: Path
) -> None:
    entries = read_header(written(tmp_path, names), "model.safetensors")
    start = entries[0].offset
    assert {entry.name: (entry.offset - start, entry.nbytes) for entry in entries} == {
        "at the beginning": (0, 0),
        "first": (0, 4),
        "where the second begins": (4, 0),
        "second": (4, 4),
    }


def test_an_empty_tensor_inside_of_a_full_one_is_refused(tmp_path: Path) -> None:
    inside = {"dtype": "F32", "shape": [0], "data_offsets": [2, 2]}
    with pytest.raises(CheckpointError, match='"first" and "inside" overlap'):
        read_header(written(tmp_path, ("first", "second"), inside=inside), "model.safetensors")
