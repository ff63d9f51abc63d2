"""The fused residual addition and normalisation against the reference."""

from __future__ import annotations

import pytest
import torch

from kernels import reference
from kernels.gpu import norm

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Relative to the largest value: float32 rounding of a sum, or one rounding to 16 bits.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}
WIDTHS = [1, 3, 64, 96, 513, 1000, 4097]


def given(shape, dtype, device, seed, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator) * 3 + shift).to(device, dtype)


def close(got, wanted, dtype):
    assert got.dtype is dtype
    limit = TOLERANCE[dtype] * max(1.0, float(wanted.float().abs().max()))
    torch.testing.assert_close(got.float(), wanted.float(), rtol=0, atol=limit)
    if dtype is not torch.float32:  # rounded once: all but the nearest of ties to the bit
        assert int((got != wanted.to(dtype)).sum()) <= 1 + got.numel() // 100


def both(x, residual, weight, bias, *, centred=False, offset=0.0):
    """(kernel, reference) of LayerNorm with a bias or where ``centred``, else of RMSNorm."""
    if bias is None and not centred:
        return (
            norm.add_rms_norm(x, residual, weight, 1e-5, offset),
            reference.add_rms_norm(x, residual, weight, 1e-5, weight_offset=offset),
        )
    return (
        norm.add_layer_norm(x, residual, weight, bias, 1e-5, offset, 1),
        reference.add_layer_norm(x, residual, weight, bias, 1e-5, weight_offset=offset),
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("centred", [False, True], ids=["rms", "layer"])
@pytest.mark.parametrize("with_residual", [True, False], ids=["add", "alone"])
def test_a_row_is_normalised_as_the_reference_does(dtype, width, centred, with_residual, device):
    """7 rows: no multiple of the rows that a program takes."""
    x = given((7, width), dtype, device, seed=width, shift=1.0)
    residual = given((7, width), dtype, device, seed=width + 1) if with_residual else None
    weight = given((width,), dtype, device, seed=2)
    bias = given((width,), dtype, device, seed=3) if centred else None
    before = x.clone()
    (normed, total), (wanted, wanted_total) = both(x, residual, weight, bias)
    close(normed, wanted, dtype)
    assert torch.equal(total, wanted_total)  # the sum is rounded to the bit
    assert torch.equal(x, before)
    if residual is None:
        assert total.data_ptr() == x.data_ptr()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [3, 96, 1000])
@pytest.mark.parametrize("with_residual", [True, False], ids=["add", "alone"])
def test_norms_without_a_bias_or_a_weight_and_weights_added_to_one(
    dtype, width, with_residual, device
):
    x = given((7, width), dtype, device, seed=width, shift=1.0)
    residual = given((7, width), dtype, device, seed=width + 1) if with_residual else None
    weight, bias = (given((width,), dtype, device, seed=seed) for seed in (2, 3))
    for parameters, how in (
        ((weight, None), {"centred": True}),
        ((None, None), {"centred": True}),
        ((weight, bias), {"offset": 1.0}),
        ((weight, None), {"offset": 1.0}),
    ):
        (normed, total), (wanted, wanted_total) = both(x, residual, *parameters, **how)
        close(normed, wanted, dtype)
        assert torch.equal(total, wanted_total)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [8, 80])
@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
@pytest.mark.parametrize("with_residual", [True, False], ids=["add", "alone"])
def test_heads_of_a_row_are_normalised_each_by_itself(dtype, width, own, with_residual, device):
    """Of a part of a wider tensor, as queries are of qkv."""
    heads, tokens = 5, 7
    wide = given((tokens, (heads + 3) * width), dtype, device, seed=width, shift=1.0)
    x = wide[:, width : (heads + 1) * width]
    residual = given(tuple(x.shape), dtype, device, seed=1) if with_residual else None
    shape = (heads, width) if own else (width,)
    weight, bias = (given(shape, dtype, device, seed=seed) for seed in (2, 3))
    before = wide.clone()
    for parameters in ((weight, bias), (weight, None), (None, None)):
        normed, total = norm.add_layer_norm(x, residual, *parameters, 1e-5, 0.0, heads)
        wanted, wanted_total = reference.add_layer_norm(x, residual, *parameters, 1e-5, heads=heads)
        close(normed, wanted, dtype)
        assert torch.equal(total, wanted_total)
    assert torch.equal(wide, before)


def test_the_rounded_total_is_what_is_normalised(device):
    """1 + 2^-9 is no bfloat16: with the unrounded sum the rows below would differ by a bit."""
    x = torch.ones(64, 256, dtype=torch.bfloat16, device=device)
    residual = (torch.rand(64, 256, generator=torch.Generator().manual_seed(0)) * 2**-7).to(x)
    weight = torch.ones(256, device=device)
    (normed, total), (wanted, wanted_total) = both(x, residual, weight, None)
    assert torch.equal(total, wanted_total)
    assert set(total.flatten().tolist()) <= {1.0, 1.0 + 2**-7}
    assert torch.equal(normed, wanted)


def test_rows_of_a_wider_tensor_and_columns_of_a_transposed_one(device):
    wide = given((5, 300), torch.float16, device, seed=1)
    x, residual = wide[:, 10:106], wide[:, 200:296]
    weight = given((192,), torch.float32, device, seed=2)[::2]
    bias = given((96,), torch.bfloat16, device, seed=3)
    before = wide.clone()
    for parameter in (None, bias):
        (normed, total), (wanted, wanted_total) = both(x, residual, weight, parameter)
        close(normed, wanted, torch.float16)
        assert torch.equal(total, wanted_total)
    assert torch.equal(wide, before)
    turned = given((96, 5), torch.float32, device, seed=4).T
    (normed, total), (wanted, _) = both(turned, None, weight, bias)
    close(normed, wanted, torch.float32)
    assert torch.equal(total, turned)


@pytest.mark.parametrize("value", [1e-12, 6e4])
def test_tiny_and_large_rows(value, device):
    """The epsilon holds where a row is nearly zero; squares of large float16 do not overflow."""
    dtype = torch.float16 if value > 1 else torch.float32
    x = torch.full((2, 64), value, dtype=dtype, device=device)
    weight = torch.ones(64, dtype=dtype, device=device)
    (normed, _), (wanted, _) = both(x, None, weight, None)
    close(normed, wanted, dtype)


def test_a_shifted_row_loses_no_variance(device):
    """LayerNorm subtracts the mean before it squares: 1000 +- 1 still has a variance of 1."""
    x = 1000 + given((3, 640), torch.float32, device, seed=5) / 3
    ones, zeros = torch.ones(640, device=device), torch.zeros(640, device=device)
    (normed, _), (wanted, _) = both(x, None, ones, zeros)
    torch.testing.assert_close(normed, wanted, rtol=0, atol=2e-4)
    assert abs(float(normed.std()) - 1) < 0.05


def test_a_row_that_is_no_number_stays_alone(device):
    x = given((6, 100), torch.float32, device, seed=6)
    x[2] = float("nan")
    (normed, _), (wanted, _) = both(x, None, torch.ones(100, device=device), None)
    assert bool(normed[2].isnan().all())
    others = [0, 1, 3, 4, 5]
    close(normed[others], wanted[others], torch.float32)


@pytest.mark.parametrize("width", [64, 1000])
@pytest.mark.parametrize("centred", [False, True], ids=["rms", "layer"])
def test_a_rows_bits_do_not_depend_on_its_neighbours(width, centred, device):
    x = given((9, width), torch.float32, device, seed=7)
    weight = given((width,), torch.float32, device, seed=8)
    bias = weight.flip(0) if centred else None
    together = both(x, x.flip(0), weight, bias)[0][0]
    for row in range(9):
        alone = both(x[row : row + 1], x.flip(0)[row : row + 1], weight, bias)[0][0]
        assert torch.equal(alone[0], together[row])


def test_no_rows_and_too_wide_ones(device):
    weight = torch.ones(8, device=device)
    empty = torch.empty(0, 8, device=device)
    normed, total = norm.add_rms_norm(empty, empty.clone(), weight, 1e-5, 0.0)
    assert normed.shape == total.shape == (0, 8)
    wide = torch.empty(1, norm.MAX_WIDTH + 1, device=device)
    with pytest.raises(ValueError, match=r"x has 16385 columns; a GPU normalises 1 \.\. 16384"):
        norm.add_rms_norm(wide, None, wide[0], 1e-5, 0.0)


def test_the_widest_row(device):
    x = given((1, norm.MAX_WIDTH), torch.bfloat16, device, seed=9)
    (normed, _), (wanted, _) = both(x, x.flip(1), x[0].float(), None)
    close(normed, wanted, torch.bfloat16)
