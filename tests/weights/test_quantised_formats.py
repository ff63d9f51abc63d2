"""Quantised matrices counted before they are made: one arithmetic for plan, loader and books."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kernels import LinearWeight, reference
from kernels import quantization as quantised
from kernels.linears import pack_on_any_device
from server.execution.held import HeldBytes
from server.memory.engine_args import EngineArgs
from server.memory.layout import build_layout
from server.memory.planner.formulas import formulas
from server.memory.planner.planner import plan_memory
from tests.engine_configs import engine_config
from tests.weights.folders import opened
from weights import formats
from weights.formats import get_quantised
from weights.inventory import QUANTISABLE, Component, Parameter, Split, inventory
from weights.loading.loader import LoadedModel, load
from weights.spec import ModelSpec
from weights.synthetic.checkpoint import write_checkpoint
from weights.synthetic.tiny_specs import tiny_gpt2, tiny_llama

SHAPES = [(1, 1), (2, 63), (3, 64), (5, 127), (8, 128), (7, 129), (40, 1000), (96, 4096)]
each_format = pytest.mark.parametrize("name", list(formats.QUANTISED))
SPECS = {
    "llama": tiny_llama(attention_bias=True, mlp_bias=True),
    "tied": tiny_llama(tied=True),
    "gpt2": tiny_gpt2(),
}
each_spec = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())


def load_folder(folder: Path, name: str | None, format: str = "bf16") -> LoadedModel[LinearWeight]:
    return load(*opened(folder), format=format, quantization=name, pack=pack_on_any_device)


def test_weights_and_kernels_mean_the_same_formats() -> None:
    assert set(formats.QUANTISED) == set(quantised.QUANTISED)
    assert formats.QUANTISED["int4"].group == quantised.INT4_GROUP


@each_format
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bytes_are_known_before_a_matrix_is_packed(name: str, shape: tuple[int, int]) -> None:
    packed = pack_on_any_device(torch.ones(shape), name)
    planned = get_quantised(name).matrix_bytes(*shape)
    assert planned == packed.nbytes == sum(storage.nbytes() for storage in packed.storages())
    biased = pack_on_any_device(torch.ones(shape), name, torch.zeros(shape[0]))
    assert biased.nbytes == planned + 4 * shape[0]


def test_bytes_of_known_shapes() -> None:
    """Llama-3.1-8B's output matrix: a byte a number and 4 a channel; 4.25 bits a number."""
    assert get_quantised("int8").matrix_bytes(4096, 4096) == 4096 * 4096 + 4 * 4096
    assert get_quantised("fp8").matrix_bytes(4096, 4096) == 4096 * 4096 + 4 * 4096
    assert get_quantised("int4").matrix_bytes(4096, 4096) == 4096 * 4096 * 17 // 32
    assert get_quantised("int4").matrix_bytes(1, 1) == 64 + 2 * 2  # a whole tile


@each_format
def test_a_fused_matrix_takes_what_its_parts_take(name: str) -> None:
    format = get_quantised(name)
    for width in (1, 64, 100, 129, 4096):
        parts = [format.matrix_bytes(rows, width) for rows in (5, 16, 3)]
        assert sum(parts) == format.matrix_bytes(24, width)


def test_only_matrices_of_layers_are_quantised() -> None:
    for component in Component:
        shape = (8, 64) if component in QUANTISABLE else (8,)
        parameter = Parameter("it", shape, component, Split.REPLICATED)
        plain = parameter.num_bytes("bf16")
        assert (parameter.num_bytes("bf16", "int8") == plain) == (component not in QUANTISABLE)
    assert Component.UNEMBEDDING not in QUANTISABLE


def test_an_unknown_format_is_named(tmp_path: Path) -> None:
    write_checkpoint(tiny_llama(), tmp_path, seed=1)
    with pytest.raises(ValueError, match="unknown quantised format 'int3'; known: int8, int4, fp8"):
        load_folder(tmp_path, "int3")


@each_spec
@each_format
def test_a_checkpoint_is_quantised_while_it_is_loaded(
    tmp_path: Path, spec: ModelSpec, name: str
) -> None:
    """Matrices are those of the plain model, rounded; everything else is bit for bit the same."""
    write_checkpoint(spec, tmp_path, seed=1)
    plain, rounded = load_folder(tmp_path, None), load_folder(tmp_path, name)
    assert rounded.linears.keys() == plain.linears.keys()
    for linear, packed in rounded.linears.items():
        given = plain.linears[linear]
        wanted = given.weight
        if linear != "unembedding":
            assert packed.format == name
            made = quantised.quantise(given.weight, name)
            wanted = quantised.dequantise(made)
            assert not torch.equal(wanted, given.weight.float())
        assert torch.equal(reference.weight_values(packed), wanted.float())
        assert (packed.bias is None) == (given.bias is None)
        assert packed.bias is None or torch.equal(packed.bias, given.bias)
    for tensor, values in plain.tensors.items():
        assert torch.equal(rounded.tensors[tensor], values)
    unembedding = rounded.linears["unembedding"].weight
    shared = unembedding.data_ptr() == rounded.tensors["embedding"].data_ptr()
    assert shared == spec.tied_unembedding


@each_spec
@each_format
@pytest.mark.parametrize("format", ["bf16", "f32"])
def test_plan_report_and_books_agree_to_the_byte(
    tmp_path: Path, spec: ModelSpec, name: str, format: str
) -> None:
    write_checkpoint(spec, tmp_path, seed=1)
    model = load_folder(tmp_path, name, format)
    config = engine_config(format=format, quantization=name)
    layout = build_layout(spec, config)
    storages = {
        storage.data_ptr(): storage.nbytes()
        for storage in (
            *(tensor.untyped_storage() for tensor in model.tensors.values()),
            *(storage for linear in model.linears.values() for storage in linear.storages()),
        )
    }
    measured = HeldBytes(spec, layout, model, {}, None).weights()  # type: ignore[arg-type]
    assert sum(layout.weights.values()) == sum(storages.values())
    assert measured == layout.weights


def test_what_waits_to_be_quantised_is_reported(tmp_path: Path) -> None:
    """The largest matrix exists in the plain format beside what is held already."""
    spec = tiny_llama()
    write_checkpoint(spec, tmp_path, seed=1)
    plain, rounded = load_folder(tmp_path, None), load_folder(tmp_path, "int4")
    waiting = rounded.report.peak_transient_bytes - plain.report.peak_transient_bytes
    largest = max(
        linear.weight.nbytes for name, linear in plain.linears.items() if name != "unembedding"
    )
    assert waiting >= largest
    held = [sum(linear.nbytes for linear in one.linears.values()) for one in (rounded, plain)]
    assert held[0] < held[1]


@pytest.mark.parametrize("tied", [True, False])
def test_a_backend_may_quantise_the_unembedding_too(tmp_path: Path, tied: bool) -> None:
    """A tied one is the embedding: it is packed when it was read, and nothing else holds it."""
    write_checkpoint(tiny_llama(tied=tied), tmp_path, seed=1)
    plain = load_folder(tmp_path, None)
    sizes: list[int] = []

    def pack(weight: torch.Tensor, format: str, bias: torch.Tensor | None = None) -> LinearWeight:
        assert format == "int8"
        sizes.append(weight.nbytes)
        return pack_on_any_device(weight, format, bias)

    table = Component.EMBEDDING if tied else Component.UNEMBEDDING
    how = {"format": "bf16", "quantization": "int8", "quantised": QUANTISABLE | {table}}
    model = load(*opened(tmp_path), pack=pack, **how)  # type: ignore[arg-type]
    assert model.linears.keys() == plain.linears.keys()
    assert model.tensors.keys() == plain.tensors.keys() - ({"embedding"} if tied else set())
    assert len(sizes) == len(model.linears)
    right = quantised.dequantise(quantised.quantise(plain.linears["unembedding"].weight, "int8"))
    assert torch.equal(reference.weight_values(model.linears["unembedding"]), right)
    staging = plain.report.peak_transient_bytes
    assert model.report.peak_transient_bytes - staging < 2 * max(sizes), "one matrix at a time"


def test_a_plan_says_what_is_quantised() -> None:
    spec = tiny_llama()
    args = EngineArgs(device="cpu", dtype="bfloat16", max_num_seqs=4, max_num_batched_tokens=64)
    plan = plan_memory(spec, replace(args, quantization="int4"), 2**30)
    matrices = [p for p in inventory(spec) if p.component in QUANTISABLE]
    elements = sum(parameter.num_elements for parameter in matrices)
    assert plan.config.model.quantization == "int4"
    assert formulas(plan)["weights"].startswith(f"{elements} parameters of matrices in int4")
    assert plan.kinds["weights"] < plan_memory(spec, args, 2**30).kinds["weights"]
