"""Embedding, norms, activations and the matrix product against the reference."""

from __future__ import annotations

import pytest
import torch

import kernels
from kernels import reference
from kernels.elementwise import KINDS

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
FORMATS = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}
# Relative to the largest value: float32 rounding of a sum, or one rounding to 16 bits.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}
TOKENS = [0, 1, 7, 130]


def close(got: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype) -> None:
    assert got.dtype is dtype
    limit = TOLERANCE[dtype] * max(1.0, float(wanted.abs().max()) if wanted.numel() else 0.0)
    torch.testing.assert_close(got.float(), wanted.float(), rtol=0, atol=limit)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("index", [torch.int32, torch.int64], ids=str)
def test_embedding_with_and_without_positions(dtype, tokens, index):
    table, positions_table = torch.randn(50, 24).to(dtype), torch.randn(20, 24).to(dtype)
    ids = torch.randint(0, 50, (tokens,), dtype=index)
    positions = torch.randint(0, 20, (tokens,), dtype=index)
    before = table.clone()
    assert torch.equal(kernels.embedding(ids, table), reference.embedding(ids, table))
    options = {"positions": positions, "position_table": positions_table}
    got = kernels.embedding(ids, table, **options)
    assert torch.equal(got, reference.embedding(ids, table, **options))
    assert torch.equal(table, before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("with_residual", [True, False])
def test_norms(dtype, tokens, with_residual):
    x = (torch.randn(tokens, 96) * 3 + 1).to(dtype)
    residual = torch.randn(tokens, 96).to(dtype) if with_residual else None
    weight, bias = torch.randn(96).to(dtype), torch.randn(96).to(dtype)
    before = x.clone()
    for name, parameters in (("add_rms_norm", (weight,)), ("add_layer_norm", (weight, bias))):
        normed, total = getattr(kernels, name)(x, residual, *parameters, 1e-5)
        wanted, wanted_total = getattr(reference, name)(x, residual, *parameters, 1e-5)
        close(normed, wanted, dtype)
        assert torch.equal(total, wanted_total)
    assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("with_residual", [True, False])
def test_norms_without_a_bias_or_a_weight_and_weights_added_to_one(dtype, with_residual):
    """An offset is added in float32: 1 + 2^-9 is no bfloat16."""
    x = (torch.randn(5, 96) * 3 + 1).to(dtype)
    residual = torch.randn(5, 96).to(dtype) if with_residual else None
    weight = torch.full((96,), 2.0**-9, dtype=dtype)
    for name, parameters, options in (
        ("add_layer_norm", (weight, None), {}),
        ("add_layer_norm", (None, None), {}),
        ("add_layer_norm", (weight, weight * 3), {"weight_offset": 1.0}),
        ("add_rms_norm", (weight,), {"weight_offset": 1.0}),
    ):
        normed, total = getattr(kernels, name)(x, residual, *parameters, 1e-5, **options)
        wanted, wanted_total = getattr(reference, name)(x, residual, *parameters, 1e-5, **options)
        close(normed, wanted, dtype)
        assert torch.equal(total, wanted_total)
    for norm, rest in ((kernels.add_rms_norm, ()), (kernels.add_layer_norm, (None,))):
        unit, _ = norm(x.float(), None, weight, *rest, 1e-5, weight_offset=1.0)
        plain, _ = norm(x.float(), None, torch.ones(96), *rest, 1e-5)
        torch.testing.assert_close(unit, plain * (1 + 2.0**-9))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
def test_heads_of_a_row_are_normalised_each_by_itself(dtype, own):
    """Of a part of a wider tensor, as queries are of qkv."""
    heads, width = 4, 24
    x = (torch.randn(5, 6 * width) * 3 + 1).to(dtype)[:, width : (heads + 1) * width]
    weight = torch.randn(heads, width).to(dtype)
    weight = weight if own else weight[0]
    for bias in (None, weight * 2):
        normed, total = kernels.add_layer_norm(x, None, weight, bias, 1e-5, heads=heads)
        wanted, _ = reference.add_layer_norm(x, None, weight, bias, 1e-5, heads=heads)
        close(normed, wanted, dtype)
        assert torch.equal(total, x)
    alone, _ = kernels.add_layer_norm(x[:, :width], None, weight.view(-1)[:width], None, 1e-5)
    normed, _ = kernels.add_layer_norm(x, None, weight, None, 1e-5, heads=heads)
    close(normed[:, :width], alone.float(), dtype)


def test_norm_of_tiny_and_of_large_rows():
    """The epsilon holds where a row is nearly zero; squares of large float16 do not overflow."""
    for x in (torch.full((1, 64), 1e-12), torch.full((1, 64), 6e4, dtype=torch.float16)):
        weight = torch.ones(64, dtype=x.dtype)
        normed, _ = kernels.add_rms_norm(x, None, weight, 1e-6)
        close(normed, reference.add_rms_norm(x, None, weight, 1e-6)[0], x.dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", [0, 1, 9])
def test_activations(dtype, kind, tokens):
    x = (torch.randn(tokens, 70) * 4).to(dtype)
    before = x.clone()
    close(kernels.activation(x, kind), reference.activation(x.float(), kind), dtype)
    close(kernels.gated_activation(x, kind), reference.gated_activation(x.float(), kind), dtype)
    assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tokens", [0, 1, 9])
def test_xielu(dtype, tokens):
    x = (torch.randn(tokens, 70) * 4).to(dtype)
    before = x.clone()
    numbers = [torch.tensor([number]).to(dtype) for number in (0.3, -0.4, 0.5, -1e-6)]
    close(kernels.xielu(x, *numbers), reference.xielu(x.float(), *numbers), dtype)
    assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tokens", [0, 1, 2, 8, 130])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("with_residual", [True, False])
@pytest.mark.parametrize("size", [(48, 40), (1100, 1000)], ids=["small", "large"])
def test_linear(dtype, tokens, with_bias, with_residual, size):
    out_features, in_features = size
    bias = torch.randn(out_features).to(dtype) if with_bias else None
    weight = torch.randn(out_features, in_features).to(dtype)
    packed = kernels.pack_linear(weight, FORMATS[dtype], bias)
    x = torch.randn(tokens, in_features).to(dtype)
    residual = torch.randn(tokens, out_features).to(dtype) if with_residual else None
    before = None if residual is None else residual.clone()
    got = kernels.linear(x, packed, residual=residual)
    close(got, reference.linear(x.float(), packed, residual=residual), dtype)
    if residual is not None:
        assert torch.equal(residual, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_linear_adds_up_in_float32(dtype):
    """A sum of 4096 small products next to a large one would vanish in 16-bit accumulation."""
    weight = torch.full((8, 4097), 2.0**-6).to(dtype)
    weight[:, 0] = 64
    for tokens in (1, 4, 200):
        got = kernels.linear(
            torch.ones(tokens, 4097).to(dtype), kernels.pack_linear(weight, FORMATS[dtype])
        )
        assert torch.equal(got, torch.full((tokens, 8), 128.0).to(dtype))


def test_a_packed_weight_is_the_given_tensor_where_the_format_is_its_own():
    table, bias = torch.randn(16, 8), torch.randn(16)
    packed = kernels.pack_linear(table, "f32", bias)
    pointers = [storage.data_ptr() for storage in packed.storages()]
    assert pointers == [table.data_ptr(), bias.data_ptr()]
    assert packed.nbytes == (16 * 8 + 16) * 4
    halved = kernels.pack_linear(table, "bf16")
    assert halved.nbytes == 16 * 8 * 2
    assert halved.format == "bf16"


IDS, SQUARE = torch.zeros(1, dtype=torch.int64), torch.zeros(2, 2)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("pack_linear", (SQUARE, "int8"), "format is 'int8'; it must be one"),
        ("pack_linear", (SQUARE, "f32", torch.zeros(3)), r"bias has shape \[3\]; it must be \[2\]"),
        (
            "linear",
            (torch.zeros(1, 3), kernels.pack_linear(SQUARE, "f32")),
            r"x has shape \[1, 3\]; it must be \[any, 2\]",
        ),
        (
            "linear",
            (torch.zeros(1, 2), kernels.pack_linear(SQUARE, "bf16")),
            "x is float32; it must be one of bfloat16",
        ),
        ("activation", (torch.zeros(1, 2), "swish"), "kind is 'swish'; it must be one"),
        ("gated_activation", (torch.zeros(1, 3), "silu"), "x has 3 columns"),
        ("xielu", (torch.zeros(1, 3), *[torch.zeros(2)] * 4), r"alpha_p has shape \[2\]"),
        (
            "add_rms_norm",
            (torch.zeros(1, 3), None, torch.zeros(2), 1e-5),
            r"weight has shape \[2\]; it must be \[3\]",
        ),
        (
            "add_layer_norm",
            (torch.zeros(1, 3), None, torch.zeros(3, 1), torch.zeros(3), 1e-5),
            r"weight has shape \[3, 1\]; it must be \[1, 3\]",
        ),
        (
            "add_rms_norm",
            (torch.zeros(1, 3), None, torch.zeros(3, device="meta"), 1e-5),
            "weight is on meta; it must be on cpu, where x is",
        ),
        (
            "embedding",
            (IDS.float(), SQUARE),
            "token_ids is float32; it must be one of int32, int64",
        ),
    ],
)
def test_wrong_arguments_are_refused_by_name(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        getattr(kernels, name)(*arguments)


def test_positions_without_their_table_are_refused():
    with pytest.raises(ValueError, match="positions is given without position_table"):
        kernels.embedding(IDS, SQUARE, positions=IDS)


def test_a_product_does_not_end_with_every_activation():
    with pytest.raises(ValueError, match="activation is 'relu2'; it must be one of silu"):
        kernels.linear(
            torch.zeros(1, 2), kernels.pack_linear(torch.zeros(2, 2), "f32"), activation="relu2"
        )
