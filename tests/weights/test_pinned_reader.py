"""Loading through pinned buffers, with a fake device that copies as late as it may."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.weights.fake_copies import FakeCopies
from tests.weights.folders import opened
from weights import families
from weights.checkpoint.matching import match
from weights.errors import CheckpointError
from weights.inventory import inventory
from weights.loading.loader import LoadedModel, load
from weights.loading.pinned_reader import NUM_BUFFERS, PinnedReader, _buffer_bytes
from weights.synthetic.checkpoint import write_checkpoint
from weights.synthetic.tiny_specs import tiny_gpt2, tiny_llama


def keep(weight: torch.Tensor, format: str, bias: torch.Tensor | None = None) -> list[torch.Tensor]:
    """As a kernel would: packing reads the values at once."""
    return [weight.clone()] + ([] if bias is None else [bias.clone()])


def loaded(folder: Path, format: str, copies: FakeCopies | None) -> LoadedModel[list[torch.Tensor]]:
    return load(*opened(folder), format=format, pack=keep, copies=copies)


@pytest.fixture(params=["llama", "gpt2"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    spec = tiny_llama() if request.param == "llama" else tiny_gpt2()
    write_checkpoint(spec, tmp_path, seed=1, shards=2)
    return tmp_path


@pytest.mark.parametrize("format", ["f32", "bf16", "f16"])
def test_every_value_comes_to_its_place(folder: Path, format: str) -> None:
    direct, pinned = loaded(folder, format, None), loaded(folder, format, FakeCopies())
    assert direct.tensors.keys() == pinned.tensors.keys()
    for name, tensor in direct.tensors.items():
        assert torch.equal(tensor, pinned.tensors[name]), name
    for name, parts in direct.linears.items():
        assert all(map(torch.equal, parts, pinned.linears[name])), name
    assert pinned.report.bytes_read == direct.report.bytes_read
    assert pinned.report.tensors == direct.report.tensors


class SmallReader:
    """One checkpoint read with buffers so small that each is used many times."""

    def __init__(self, folder: Path, *, buffer_bytes: int = 256, num_threads: int = 3) -> None:
        self.checkpoint, self.spec = opened(folder)
        self.copies = FakeCopies()
        self.heard: list[int] = []
        self.reader = PinnedReader(
            self.checkpoint,
            self.heard.append,
            self.copies,
            buffer_bytes=buffer_bytes,
            num_threads=num_threads,
        )

    def read(self) -> dict[str, torch.Tensor]:
        """Every parameter as one tensor, in float32 as the file has it."""
        matching = match(self.checkpoint, families.by_name(self.spec.family), self.spec)
        shapes = {parameter.name: parameter.shape for parameter in inventory(self.spec)}
        views = {name: torch.full(shape, float("nan")) for name, shape in shapes.items()}
        with self.reader as reader:
            for placement in matching.placements:
                reader.fill(placement, views)
        return views


def test_a_buffer_is_filled_again_only_when_its_copy_is_done(folder: Path) -> None:
    small, large = SmallReader(folder), SmallReader(folder, buffer_bytes=1 << 20)
    expected, found = large.read(), small.read()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name
    assert small.copies.waits > 100
    assert sum(small.heard) == sum(large.heard)
    assert small.copies.done == len(small.copies.work), "at the end every copy is done"


def test_a_buffer_that_is_not_waited_for_is_noticed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = SmallReader(folder, buffer_bytes=1 << 20).read()
    small = SmallReader(folder)
    take = PinnedReader._take_buffer

    def hasty(reader: PinnedReader, num_bytes: int) -> tuple[int, torch.Tensor]:
        reader._marks.clear()
        return take(reader, num_bytes)

    monkeypatch.setattr(PinnedReader, "_take_buffer", hasty)
    found = small.read()
    assert not all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_matrix_that_is_packed_before_its_copies_are_joined_is_noticed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeCopies, "join_main", lambda copies: None)
    direct, pinned = loaded(folder, "f32", None), loaded(folder, "f32", FakeCopies())
    same = [
        torch.equal(parts[0], pinned.linears[name][0]) for name, parts in direct.linears.items()
    ]
    assert not all(same)


def test_pieces_are_read_by_several_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weights.loading.pinned_reader.READ_BYTES", 64)
    write_checkpoint(tiny_llama(), tmp_path, seed=2)
    expected = SmallReader(tmp_path, buffer_bytes=1 << 20, num_threads=1).read()
    found = SmallReader(tmp_path, buffer_bytes=4096, num_threads=4).read()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_the_buffers_are_booked_and_small_beside_a_small_model(folder: Path) -> None:
    copies = FakeCopies()
    report = loaded(folder, "f32", copies).report
    assert report.peak_transient_bytes >= copies.pinned_bytes == NUM_BUFFERS << 20
    assert [_buffer_bytes(total) for total in (1, 100 << 20, 16 << 30)] == [
        1 << 20,
        (100 << 20) // 16,
        64 << 20,
    ]


def test_a_file_that_shrinks_is_named_with_its_tensor(folder: Path) -> None:
    small = SmallReader(folder)
    (name, *_) = small.checkpoint.file_sizes
    matching = match(small.checkpoint, families.by_name(small.spec.family), small.spec)
    last = max(
        (p for p in matching.placements if p.entry.file == name), key=lambda p: p.entry.offset
    )
    views = {piece.parameter: torch.empty(1 << 16) for piece in last.pieces}
    with small.reader as reader:
        reader._open(name)
        with open(folder / name, "r+b") as file:
            file.truncate(last.entry.offset + 4)
        pieces = list(views.values())
        with pytest.raises(CheckpointError, match=f"{name}: tensor .* is cut off"):
            reader._send(last.entry, last.entry.offset, 64, torch.float32, pieces)
