"""Queries, keys and values that a checkpoint fuses by key-value head: each row comes to its place,
however it is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.weights.fake_copies import FakeCopies
from weights.checkpoint.folder import open_checkpoint
from weights.checkpoint.matching import Placement
from weights.checkpoint.pieces import Piece, pieces
from weights.config.family import Source
from weights.inventory import Component, Parameter, Split
from weights.loading.pinned_reader import PinnedReader
from weights.loading.tensor_reader import TensorReader
from weights.synthetic.checkpoint import TensorToWrite, write_safetensors

HEAD_DIM, HIDDEN = 2, 3
QUERY = Parameter("query", (4 * HEAD_DIM, HIDDEN), Component.QUERY, Split.HEADS, heads=4)
KEY = Parameter("key", (2 * HEAD_DIM, HIDDEN), Component.KEY, Split.HEADS, heads=2)
VALUE = Parameter("value", (2 * HEAD_DIM, HIDDEN), Component.VALUE, Split.HEADS, heads=2)
TARGETS = (QUERY, KEY, VALUE)
NAMES = tuple(target.name for target in TARGETS)


def test_pieces_tell_the_rows_of_both_layouts() -> None:
    assert pieces(Source("fused", NAMES), TARGETS) == (
        Piece("query", 0, 8, 0),
        Piece("key", 8, 4, 0),
        Piece("value", 12, 4, 0),
    )
    assert pieces(Source("fused", NAMES, by_kv_head=True), TARGETS) == (
        Piece("query", 0, 4, 0),
        Piece("key", 4, 2, 0),
        Piece("value", 6, 2, 0),
        Piece("query", 8, 4, 4),
        Piece("key", 12, 2, 2),
        Piece("value", 14, 2, 2),
    )


def test_a_tensor_of_one_head_is_a_row() -> None:
    norms = Parameter("norms", (4, HEAD_DIM), Component.NORM, Split.HEADS, heads=4)
    assert pieces(Source("norms.{head}", ("norms",)), (norms,), 2) == (Piece("norms", 0, 1, 2),)


def test_what_has_no_heads_cannot_be_dealt_out_by_them() -> None:
    up = Parameter("up", (8, HIDDEN), Component.UP, Split.ROWS)
    with pytest.raises(ValueError, match="its parameters have none"):
        pieces(Source("fused", ("up",), by_kv_head=True), (up,))


@pytest.mark.parametrize("transposed", [False, True], ids=["rows", "columns"])
@pytest.mark.parametrize("held", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("pinned", [False, True], ids=["direct", "pinned"])
def test_every_row_comes_to_its_place(
    transposed: bool, held: torch.dtype, pinned: bool, tmp_path: Path
) -> None:
    fused = torch.arange(16.0 * HIDDEN).view(16, HIDDEN)
    stored = fused.t() if transposed else fused
    tensor = TensorToWrite("fused", tuple(stored.shape), lambda: stored)
    write_safetensors(tmp_path / "model.safetensors", [tensor], "f32")
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    checkpoint = open_checkpoint(tmp_path)
    source = Source("fused", NAMES, transposed, by_kv_head=True)
    placement = Placement(checkpoint.tensors["fused"], pieces(source, TARGETS), transposed)
    assert placement.parameters == NAMES

    views = {target.name: torch.full(target.shape, -1.0, dtype=held) for target in TARGETS}
    reader = (
        PinnedReader(checkpoint, lambda count: None, FakeCopies(), buffer_bytes=48)
        if pinned
        else TensorReader(checkpoint, lambda count: None, chunk_bytes=70)
    )
    with reader:
        reader.fill(placement, views)
        reader.settle()
    by_head = fused.view(2, 4, HEAD_DIM, HIDDEN)  # of each key-value head: q, q, k, v
    expected = {"query": by_head[:, :2], "key": by_head[:, 2], "value": by_head[:, 3]}
    for name, rows in expected.items():
        assert torch.equal(views[name], rows.reshape(-1, HIDDEN).to(held)), name
