"""Checkpoints written and loaded again: every value in its place, whatever the files look like."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.weights.folders import (
    WEIGHTS,
    append_tensor,
    edit_config,
    read_parts,
    rename_tensors,
    write_parts,
)
from weights import families
from weights.checkpoint.folder import Checkpoint, TensorEntry, open_checkpoint
from weights.checkpoint.matching import match
from weights.errors import CheckpointError
from weights.inventory import inventory
from weights.loading.loader import LoadedModel, load
from weights.loading.tensor_reader import TensorReader
from weights.spec import ModelSpec
from weights.synthetic.checkpoint import write_checkpoint
from weights.synthetic.tiny_specs import tiny_gpt2, tiny_llama

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


@dataclass(frozen=True)
class Packed:
    weight: torch.Tensor
    bias: torch.Tensor | None


def pack(weight: torch.Tensor, format: str, bias: torch.Tensor | None = None) -> Packed:
    return Packed(weight, bias)


def load_folder(
    folder: Path, format: str = "f32", progress: Callable[[int, int], None] | None = None
) -> LoadedModel[Packed]:
    checkpoint = open_checkpoint(folder)
    spec = families.resolve(checkpoint.config).spec(checkpoint.config)
    return load(checkpoint, spec, format=format, pack=pack, progress=progress)


def raw_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """What the files hold, read by other code than the loader's."""
    from safetensors.torch import load_file

    found: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        found |= load_file(path)
    return found


def same(left: LoadedModel[Packed], right: LoadedModel[Packed]) -> bool:
    def flat(model: LoadedModel[Packed]) -> dict[str, torch.Tensor]:
        found = dict(model.tensors)
        for name, packed in model.linears.items():
            found[f"{name}.weight"] = packed.weight
            if packed.bias is not None:
                found[f"{name}.bias"] = packed.bias
        return found

    one, other = flat(left), flat(right)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_llama_is_fused_row_by_row(tmp_path: Path) -> None:
    spec = tiny_llama(attention_bias=True, mlp_bias=True)
    write_checkpoint(spec, tmp_path, seed=1)
    raw = raw_tensors(tmp_path)
    model = load_folder(tmp_path)

    layer = "model.layers.1"
    parts = [f"{layer}.self_attn.{name}_proj" for name in "qkv"]
    qkv = model.linears["layers.1.attention.qkv"]
    assert torch.equal(qkv.weight, torch.cat([raw[f"{part}.weight"] for part in parts]))
    assert qkv.bias is not None
    assert torch.equal(qkv.bias, torch.cat([raw[f"{part}.bias"] for part in parts]))
    gate_up = model.linears["layers.1.mlp.gate_up"]
    parts = [f"{layer}.mlp.{name}_proj.weight" for name in ("gate", "up")]
    assert torch.equal(gate_up.weight, torch.cat([raw[part] for part in parts]))
    assert torch.equal(model.linears["unembedding"].weight, raw["lm_head.weight"])
    norm = model.tensors["layers.1.mlp_norm.weight"]
    assert torch.equal(norm, raw[f"{layer}.post_attention_layernorm.weight"])


def test_a_gpt2_is_transposed(tmp_path: Path) -> None:
    spec = tiny_gpt2()
    write_checkpoint(spec, tmp_path, seed=1)
    raw = raw_tensors(tmp_path)
    model = load_folder(tmp_path)

    assert raw["transformer.h.0.attn.c_attn.weight"].shape == (64, 192)
    qkv = model.linears["layers.0.attention.qkv"]
    assert torch.equal(qkv.weight, raw["transformer.h.0.attn.c_attn.weight"].t())
    assert qkv.weight.is_contiguous()
    assert qkv.bias is not None
    assert torch.equal(qkv.bias, raw["transformer.h.0.attn.c_attn.bias"])
    up = model.linears["layers.0.mlp.up"]
    assert torch.equal(up.weight, raw["transformer.h.0.mlp.c_fc.weight"].t())
    assert torch.equal(model.tensors["position_embedding"], raw["transformer.wpe.weight"])
    assert torch.equal(model.tensors["final_norm.bias"], raw["transformer.ln_f.bias"])


@pytest.mark.parametrize("spec", [tiny_llama(), tiny_gpt2()], ids=lambda spec: spec.family)
def test_every_parameter_is_held_once(tmp_path: Path, spec: ModelSpec) -> None:
    write_checkpoint(spec, tmp_path, seed=1)
    model = load_folder(tmp_path, "bf16")
    held = [*model.tensors.values()]
    for packed in model.linears.values():
        held += [packed.weight] if packed.bias is None else [packed.weight, packed.bias]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in held}

    expected = sum(parameter.num_bytes("bf16") for parameter in inventory(spec))
    assert sum(storage.nbytes() for storage in storages.values()) == expected


def test_a_tied_unembedding_shares_the_embeddings_storage(tmp_path: Path) -> None:
    write_checkpoint(tiny_llama(tied=True), tmp_path, seed=1)
    model = load_folder(tmp_path)
    assert model.linears["unembedding"].weight.data_ptr() == model.tensors["embedding"].data_ptr()


@pytest.mark.parametrize("spec", [tiny_llama(), tiny_gpt2()], ids=lambda spec: spec.family)
def test_shards_that_split_fused_tensors_make_the_same_model(
    tmp_path: Path, spec: ModelSpec
) -> None:
    write_checkpoint(spec, tmp_path / "one", seed=1)
    write_checkpoint(spec, tmp_path / "five", seed=1, shards=5)
    weight_map = json.loads((tmp_path / "five/model.safetensors.index.json").read_text())
    layer = "model.layers.0.self_attn" if spec.family == "llama" else "transformer.h.0.attn"
    files = {file for name, file in weight_map["weight_map"].items() if name.startswith(layer)}
    assert len(files) > 2

    assert same(load_folder(tmp_path / "one"), load_folder(tmp_path / "five"))


@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize("served", DTYPES)
@pytest.mark.parametrize("spec", [tiny_llama(), tiny_gpt2()], ids=lambda spec: spec.family)
def test_formats_convert_as_torch_does(
    tmp_path: Path, spec: ModelSpec, stored: str, served: str
) -> None:
    write_checkpoint(spec, tmp_path, seed=1, format=stored)
    raw = raw_tensors(tmp_path)
    model = load_folder(tmp_path, served)

    transposed = spec.family == "gpt2"
    names = ("transformer.wte", "transformer.h.0.mlp.c_proj", "transformer.ln_f")
    if not transposed:
        names = ("model.embed_tokens", "model.layers.0.mlp.down_proj", "model.norm")
    table, down, norm = (raw[f"{name}.weight"].to(DTYPES[served]) for name in names)
    assert raw[f"{names[0]}.weight"].dtype == DTYPES[stored]
    assert torch.equal(model.tensors["embedding"], table)
    assert torch.equal(model.tensors["final_norm.weight"], norm)
    found = model.linears["layers.0.mlp.down"].weight
    assert torch.equal(found, down.t() if transposed else down)


def test_formats_may_be_mixed_in_one_file(tmp_path: Path) -> None:
    write_checkpoint(tiny_llama(), tmp_path, seed=1, format="bf16")
    expected = raw_tensors(tmp_path)["model.norm.weight"].float()
    header, data = read_parts(tmp_path / WEIGHTS)
    entry = header["model.norm.weight"]
    begin, end = entry["data_offsets"]
    for other in header.values():
        if "data_offsets" in other and other["data_offsets"][0] >= end:
            other["data_offsets"] = [offset + end - begin for offset in other["data_offsets"]]
    entry |= {"dtype": "F32", "data_offsets": [begin, end + end - begin]}
    wide = expected.numpy().tobytes()
    write_parts(tmp_path / WEIGHTS, header, data[:begin] + wide + data[end:])

    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.parameter_format == "bf16"
    assert torch.equal(load_folder(tmp_path).tensors["final_norm.weight"], expected)


def test_a_checkpoint_s_format_is_that_of_most_bytes_and_not_of_most_tensors(
    tmp_path: Path,
) -> None:
    matrix = TensorEntry("matrix", "f", "BF16", (64, 64), 0, 8192)
    norms = [TensorEntry(f"norm{i}", "f", "F32", (64,), 8192 + 256 * i, 256) for i in range(9)]
    mask = TensorEntry("mask", "f", "BOOL", (1 << 20,), 1 << 20, 1 << 20)
    tensors = {entry.name: entry for entry in (*norms, matrix, mask)}
    assert Checkpoint(tmp_path, {}, {}, tensors, {}, "f").parameter_format == "bf16"
    assert Checkpoint(tmp_path, {}, {}, {"mask": mask}, {}, "f").parameter_format is None


def test_a_value_too_large_for_f16_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tiny_llama(), tmp_path, seed=1)
    header, data = read_parts(tmp_path / WEIGHTS)
    begin = header["model.norm.weight"]["data_offsets"][0]
    huge = torch.tensor([-70000.0]).numpy().tobytes()
    write_parts(tmp_path / WEIGHTS, header, data[:begin] + huge + data[begin + 4 :])

    assert load_folder(tmp_path, "bf16").tensors["final_norm.weight"][0] == -70144.0
    with pytest.raises(CheckpointError, match=r'model\.norm\.weight" has values beyond 65504'):
        load_folder(tmp_path, "f16")


def test_names_without_the_prefix_are_accepted(tmp_path: Path) -> None:
    write_checkpoint(tiny_gpt2(), tmp_path / "full", seed=1)
    shutil.copytree(tmp_path / "full", tmp_path / "bare")
    rename_tensors(tmp_path / "bare", lambda name: name.removeprefix("transformer."))
    full, bare = load_folder(tmp_path / "full"), load_folder(tmp_path / "bare")
    assert same(full, bare)
    assert (full.report.unprefixed, bare.report.unprefixed) == (False, True)


def test_what_is_no_parameter_is_skipped_and_reported(tmp_path: Path) -> None:
    write_checkpoint(tiny_gpt2(num_layers=1), tmp_path / "gpt2", seed=1)
    append_tensor(tmp_path / "gpt2", "h.0.attn.bias", bytes(16), [1, 1, 4, 4], "BOOL")
    append_tensor(tmp_path / "gpt2", "transformer.h.0.attn.masked_bias", bytes(4), [])
    report = load_folder(tmp_path / "gpt2").report
    assert {skipped.name: skipped.reason for skipped in report.skipped} == {
        "h.0.attn.bias": "the causal mask is computed",
        "transformer.h.0.attn.masked_bias": "the causal mask is computed",
    }

    write_checkpoint(tiny_llama(num_layers=1), tmp_path / "llama", seed=1)
    inv_freq = "model.layers.0.self_attn.rotary_emb.inv_freq"
    append_tensor(tmp_path / "llama", inv_freq, bytes(32), [8])
    append_tensor(tmp_path / "llama", "model.position_ids", bytes(32), [1, 4], "I64")
    report = load_folder(tmp_path / "llama").report
    assert [skipped.name for skipped in report.skipped] == [inv_freq, "model.position_ids"]


def test_a_mask_of_a_layer_that_there_is_not_is_unexpected(tmp_path: Path) -> None:
    write_checkpoint(tiny_gpt2(num_layers=1), tmp_path, seed=1)
    append_tensor(tmp_path, "h.1.attn.bias", bytes(16), [1, 1, 4, 4], "BOOL")
    with pytest.raises(CheckpointError, match=r'unexpected tensors: "h\.1\.attn\.bias"'):
        load_folder(tmp_path)


def test_a_tied_copy_that_agrees_is_skipped(tmp_path: Path) -> None:
    write_checkpoint(tiny_llama(), tmp_path, seed=1)
    raw = raw_tensors(tmp_path)
    copy = raw["model.embed_tokens.weight"].numpy().tobytes()
    header, data = read_parts(tmp_path / WEIGHTS)
    begin, end = header["lm_head.weight"]["data_offsets"]
    write_parts(tmp_path / WEIGHTS, header, data[:begin] + copy + data[end:])
    edit_config(tmp_path, tie_word_embeddings=True)

    report = load_folder(tmp_path).report
    assert [skipped.name for skipped in report.skipped] == ["lm_head.weight"]

    # One bit of the last byte is enough to be noticed.
    spoilt = copy[:-1] + bytes([copy[-1] ^ 1])
    write_parts(tmp_path / WEIGHTS, header, data[:begin] + spoilt + data[end:])
    with pytest.raises(CheckpointError, match="tie_word_embeddings is true"):
        load_folder(tmp_path)


@pytest.mark.parametrize(("stored", "served"), [("f32", "f32"), ("f32", "bf16")])
@pytest.mark.parametrize("spec", [tiny_llama(), tiny_gpt2()], ids=lambda spec: spec.family)
def test_small_chunks_change_nothing(
    tmp_path: Path, spec: ModelSpec, stored: str, served: str
) -> None:
    write_checkpoint(spec, tmp_path, seed=1, format=stored)
    whole = load_folder(tmp_path, served)
    checkpoint = open_checkpoint(tmp_path)
    dtype = DTYPES[served]
    family = families.by_name(spec.family)
    with TensorReader(checkpoint, lambda count: None, chunk_bytes=1000) as reader:
        for placement in match(checkpoint, family, spec).placements:
            shapes = {parameter.name: parameter.shape for parameter in inventory(spec)}
            views = {
                p.parameter: torch.empty(shapes[p.parameter], dtype=dtype) for p in placement.pieces
            }
            reader.fill(placement, views)
            if placement.pieces[0].parameter == "layers.0.mlp.up.weight":
                up = views["layers.0.mlp.up.weight"]
            if "embedding.weight" in views:
                assert torch.equal(views["embedding.weight"], whole.tensors["embedding"])
        # One row of the widest transposed tensor at least: 256 float32 channels.
        assert reader.staging_bytes <= 1024
    name = "layers.0.mlp.gate_up" if spec.mlp.gated else "layers.0.mlp.up"
    assert torch.equal(up, whole.linears[name].weight[-len(up) :])


def test_the_report_adds_up_and_the_transient_peak_is_one_chunk(tmp_path: Path) -> None:
    spec = tiny_gpt2(hidden_size=256, vocab_size=12_000)
    write_checkpoint(spec, tmp_path, seed=1)
    seen: list[tuple[int, int]] = []
    report = load_folder(tmp_path, "bf16", lambda done, total: seen.append((done, total))).report

    total = open_checkpoint(tmp_path).total_bytes
    assert report.bytes_read == total
    assert report.tensors == len(raw_tensors(tmp_path))
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert 0 < report.peak_transient_bytes <= 8 << 20


@pytest.mark.parametrize("shards", [1, 3])
def test_progress_tells_of_packing_too(tmp_path: Path, shards: int) -> None:
    """Matrices are packed between what is told of reading, and not all of them behind it."""
    spec = tiny_llama(num_layers=4)
    write_checkpoint(spec, tmp_path, seed=1, shards=shards)
    told: list[int] = []
    packed_at: list[int] = []

    def packing(weight: torch.Tensor, format: str, bias: torch.Tensor | None = None) -> Packed:
        packed_at.append(told[-1])
        return pack(weight, format, bias)

    checkpoint = open_checkpoint(tmp_path)
    loaded = load(
        checkpoint,
        spec,
        format="f32",
        pack=packing,
        progress=lambda done, total: told.append(done),
    )
    assert len(packed_at) == len(loaded.linears) == 17
    assert packed_at == sorted(set(packed_at)), "something was read between any two"
    held = sum(weight.weight.nbytes for weight in loaded.linears.values())
    assert packed_at[0] < held / 2
    assert packed_at[-1] <= told[-1] == checkpoint.total_bytes


@pytest.mark.parametrize("tied", [True, False])
def test_the_largest_are_read_first_and_of_equals_what_is_packed(
    tmp_path: Path, tied: bool
) -> None:
    """A packed matrix may lie beside the one that was read, while little else is held."""
    spec = tiny_llama(vocab_size=3000, tied=tied)
    write_checkpoint(spec, tmp_path, seed=1)
    read, packed_at = [0], list[int]()

    def packing(weight: torch.Tensor, format: str, bias: torch.Tensor | None = None) -> Packed:
        packed_at.append(read[-1])
        return pack(weight, format, bias)

    loaded = load(
        open_checkpoint(tmp_path),
        spec,
        format="f32",
        pack=packing,
        packs_tables=True,
        progress=lambda done, total: read.append(done),
    )
    plain = load_folder(tmp_path)
    table = 4 * 3000 * 64
    assert packed_at[0] == table
    assert (read[2] == 2 * table) != tied, "then the embedding"
    assert ("embedding" in loaded.tensors) != tied
    assert torch.equal(loaded.linears["unembedding"].weight, plain.linears["unembedding"].weight)
    assert loaded.linears.keys() == plain.linears.keys()


def test_bytes_that_need_no_conversion_pass_no_staging_buffer(tmp_path: Path) -> None:
    write_checkpoint(tiny_llama(), tmp_path, seed=1, format="bf16")
    assert load_folder(tmp_path, "bf16").report.peak_transient_bytes == 0


def test_a_file_that_changes_after_its_header_was_read_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tiny_llama(), tmp_path, seed=1)
    checkpoint = open_checkpoint(tmp_path)
    with (tmp_path / WEIGHTS).open("ab") as stream:
        stream.write(b"more")
    spec = families.resolve(checkpoint.config).spec(checkpoint.config)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: changed its size"):
        load(checkpoint, spec, format="f32", pack=pack)


def test_a_hub_cache_folder_of_links_is_served(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    write_checkpoint(tiny_llama(), blobs, seed=1)
    snapshot.mkdir(parents=True)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    assert same(load_folder(snapshot), load_folder(blobs))


def test_nothing_of_the_files_stays_mapped_or_open(tmp_path: Path) -> None:
    write_checkpoint(tiny_llama(), tmp_path, seed=1)
    model = load_folder(tmp_path)
    assert model.tensors
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()
    links = (path for path in Path("/proc/self/fd").iterdir() if path.is_symlink())
    assert not any(str(tmp_path) in str(path.readlink()) for path in links)
