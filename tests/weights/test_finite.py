"""Values that are not finite are told while loading, by tensor and place, on every way in."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from kernels.linears import pack_on_any_device
from tests.weights.fake_copies import FakeCopies
from tests.weights.folders import WEIGHTS, append_tensor, opened, read_parts, write_parts
from weights.checkpoint.folder import open_checkpoint
from weights.checkpoint.safetensors_header import TensorEntry
from weights.errors import CheckpointError
from weights.loading.finite import Span, check
from weights.loading.loader import load
from weights.loading.tensor_reader import TensorReader
from weights.spec import ModelSpec
from weights.synthetic.checkpoint import write_checkpoint
from weights.synthetic.tiny_specs import tiny_gpt2, tiny_llama

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
NAMES = {"f32": "F32", "bf16": "BF16", "f16": "F16"}


def plant(folder: Path, tensor: str, element: int, value: float) -> list[int]:
    """Writes ``value`` into one tensor of the file; returns the place that is to be told."""
    header, data = read_parts(folder / WEIGHTS)
    entry = header[tensor]
    dtype = {name: DTYPES[key] for key, name in NAMES.items()}[entry["dtype"]]
    raw = torch.tensor([value], dtype=dtype).view(torch.uint8).numpy().tobytes()
    at = entry["data_offsets"][0] + element * len(raw)
    write_parts(folder / WEIGHTS, header, data[:at] + raw + data[at + len(raw) :])
    return [int(part) for part in torch.unravel_index(torch.tensor(element), entry["shape"])]


def load_folder(folder: Path, held: str, *, pinned: bool, quantization: str | None) -> None:
    copies = FakeCopies() if pinned else None
    how = {"format": held, "quantization": quantization, "copies": copies}
    load(*opened(folder), pack=pack_on_any_device, **how)


@pytest.mark.parametrize("quantization", [None, "int8"])
@pytest.mark.parametrize("pinned", [False, True])
@pytest.mark.parametrize(
    ("spec", "stored", "held"),
    [
        (tiny_llama(), "f32", "f32"),  # read into place
        (tiny_llama(), "bf16", "bf16"),
        (tiny_llama(), "bf16", "f32"),  # converted through the staging buffer
        (tiny_llama(), "f16", "bf16"),
        (tiny_gpt2(), "f32", "f32"),  # turned, and cut in three
        (tiny_gpt2(), "bf16", "f16"),
    ],
    ids=lambda value: value.family if isinstance(value, ModelSpec) else value,
)
def test_a_weight_that_is_not_finite_is_named(
    tmp_path: Path, spec: ModelSpec, stored: str, held: str, pinned: bool, quantization: str | None
) -> None:
    rng = random.Random(f"{spec.family} {stored} {held} {pinned} {quantization}")
    write_checkpoint(spec, tmp_path, seed=1, format=stored)
    load_folder(tmp_path, held, pinned=pinned, quantization=quantization)
    header, _ = read_parts(tmp_path / WEIGHTS)
    header.pop("__metadata__", None)
    whole = (tmp_path / WEIGHTS).read_bytes()
    for value, word in ((float("nan"), "NaN"), (float("inf"), "infinity"), (-float("inf"), "-inf")):
        tensor = rng.choice(sorted(header))
        element = rng.randrange(torch.Size(header[tensor]["shape"]).numel())
        place = plant(tmp_path, tensor, element, value)
        with pytest.raises(CheckpointError) as caught:
            load_folder(tmp_path, held, pinned=pinned, quantization=quantization)
        message = str(caught.value)
        assert message.startswith(f'{WEIGHTS}: tensor "{tensor}" holds {word}'), message
        assert f" at {place}, " in message
        (tmp_path / WEIGHTS).write_bytes(whole)


@pytest.mark.parametrize("held", DTYPES)
@pytest.mark.parametrize("stored", DTYPES)
def test_exactly_what_stays_finite_in_the_held_format_passes(stored: str, held: str) -> None:
    """Bit patterns drawn near every edge, against torch's own conversion."""
    rng = random.Random(7)
    bits = 32 if stored == "f32" else 16
    near = [0, 0x477F_E000, 0x477F_F000, 0x7F7F_7FFF, 0x7F7F_8000, 0x7F80_0000]
    if bits == 16:
        near = [0, 0x477F, 0x4780, 0x7BFF, 0x7C00, 0x7F7F, 0x7F80]
    passed, refused = 0, 0
    for _ in range(1500):
        pattern = (
            rng.choice(near) + rng.randint(-3, 3) if rng.random() < 0.8 else rng.getrandbits(bits)
        )
        pattern = (pattern & ((1 << (bits - 1)) - 1)) | rng.getrandbits(1) << (bits - 1)
        raw = bytearray(bits // 8 * rng.choice((1, 2, 33)))
        at = rng.randrange(len(raw) // (bits // 8)) * (bits // 8)
        raw[at : at + bits // 8] = pattern.to_bytes(bits // 8, "little")
        values = torch.frombuffer(raw, dtype=DTYPES[stored])
        good = bool(torch.isfinite(values.to(DTYPES[held])).all())
        if held == "f16" and stored != "f16":  # what would be rounded down to 65504 is refused too
            good = bool((values.float().abs() <= 65504).all())
        entry = TensorEntry("t", "f", NAMES[stored], (len(values),), 0, len(raw))
        try:
            check(Span(entry, 0, memoryview(raw), held))
            assert good, values
            passed += 1
        except CheckpointError:
            assert not good, values
            refused += 1
    assert min(passed, refused) > 100


def test_a_float32_that_rounds_to_infinity_in_bfloat16_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tiny_llama(), tmp_path, seed=1)
    plant(tmp_path, "model.norm.weight", 3, 3.4e38)
    load_folder(tmp_path, "f32", pinned=False, quantization=None)
    with pytest.raises(
        CheckpointError, match=r"beyond 3\.38e38, which bf16 cannot hold; serve it as f32"
    ):
        load_folder(tmp_path, "bf16", pinned=False, quantization=None)


def test_every_byte_that_becomes_a_parameter_is_looked_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However the pieces are cut: this is all that the check costs."""
    write_checkpoint(tiny_gpt2(), tmp_path, seed=1)
    seen = set[tuple[str, int]]()

    def note(span: Span) -> None:
        places = {(span.entry.name, span.offset + at) for at in range(0, len(span.memory), 4)}
        assert not places & seen
        seen.update(places)

    monkeypatch.setattr("weights.loading.finite.check", note)
    monkeypatch.setattr("weights.loading.tensor_reader.READ_BYTES", 1000)
    load_folder(tmp_path, "f32", pinned=False, quantization=None)
    checkpoint = open_checkpoint(tmp_path)
    assert 4 * len(seen) == checkpoint.total_bytes


def test_the_staging_buffer_is_not_filled_again_while_it_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tiny_llama(), tmp_path, seed=1, format="bf16")
    busy = list[int]()
    settle = TensorReader._staged

    def staged(reader: TensorReader, *arguments: object) -> torch.Tensor:
        chunk = settle(reader, *arguments)  # type: ignore[arg-type]
        busy.append(len(reader._checker._pending))
        return chunk

    monkeypatch.setattr(TensorReader, "_staged", staged)
    load_folder(tmp_path, "f32", pinned=False, quantization=None)
    assert set(busy) == {1}  # what was just read, and nothing of the buffer's former content


def test_a_tensor_that_is_not_read_is_not_judged(tmp_path: Path) -> None:
    """GPT-2's masks and other tensors that are skipped may hold what they like."""
    write_checkpoint(tiny_gpt2(), tmp_path, seed=1)
    infinity = torch.tensor([-float("inf")]).numpy().tobytes()
    append_tensor(tmp_path, "transformer.h.0.attn.masked_bias", infinity, [1])
    load_folder(tmp_path, "f32", pinned=False, quantization=None)
