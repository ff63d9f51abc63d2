"""Quantised matrices: how near their values are, and where every number lies."""

from __future__ import annotations

import pytest
import torch

from kernels import linear, pack_linear, reference
from kernels import quantization as quantised
from kernels.linears import LinearWeight, pack_on_any_device
from kernels.quantization import dequantise, pack_int4, quantise, unpack_int4

SHAPES = [(1, 1), (3, 64), (5, 100), (16, 128), (7, 130), (33, 257)]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
each_format = pytest.mark.parametrize("format", quantised.QUANTISED)


def matrix(shape, dtype=torch.float32, seed=0):
    """Output channels of magnitudes from a millionth to a thousand."""
    generator = torch.Generator().manual_seed(seed)
    scales = 10.0 ** torch.linspace(-6, 3, shape[0])
    return (torch.randn(*shape, generator=generator) * scales.unsqueeze(1)).to(dtype)


def scale_of_each(made):
    """The scale of every value [out, in]."""
    out, width = made.shape
    if made.format != "int4":
        return made.scales.unsqueeze(1).expand(out, width)
    scales = made.scales.float().transpose(0, 1).reshape(out, -1)
    return scales.repeat_interleave(made.group, dim=1)[:, :width]


@each_shape
@each_format
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_no_value_is_further_off_than_half_a_step(format, shape, dtype):
    weight = matrix(shape, dtype)
    made = quantise(weight, format)
    off = (dequantise(made) - weight.float()).abs()
    step = scale_of_each(made)
    if format == "fp8":  # three bits after the leading one; below 2**-6 steps of 2**-9
        step = torch.maximum(weight.float().abs() / 8, step * 2.0**-9)
    assert bool((off <= 0.5 * step * (1 + 1e-5)).all())


@each_shape
@each_format
def test_scales_are_no_larger_than_they_must_be(format, shape):
    """The largest magnitude of a channel or group is the format's largest number."""
    made = quantise(matrix(shape), format)
    if format == "int4":
        numbers = unpack_int4(made.numbers).abs()
        groups = -(-shape[1] // made.group)
        assert bool((numbers[:, :groups].amax(dim=2) == 7).all())
    else:
        largest = quantised.LARGEST[format]
        assert bool((made.numbers.float().abs().amax(dim=1) == largest).all())


@pytest.mark.parametrize("group", [32, 64])
def test_int4_numbers_come_back_as_they_were_packed(group):
    generator = torch.Generator().manual_seed(1)
    numbers = torch.randint(-7, 8, (11, 6, group), generator=generator, dtype=torch.int8)
    packed = pack_int4(numbers)
    assert packed.shape == (3, 11, group)
    assert torch.equal(unpack_int4(packed), numbers)


def test_an_int4_matrix_byte_by_byte():
    """Two output channels of 70: one tile of 64 bytes each, padded from channel 70 on."""
    weight = torch.zeros(2, 70)
    weight[0, 0], weight[0, 3], weight[0, 63] = 7.0, -3.0, 1.0  # scale 1
    weight[0, 64], weight[0, 69] = 14.0, -14.0  # scale 2
    made = quantise(weight, "int4")
    assert made.numbers.shape == (1, 2, 64)
    tile = made.numbers[0, 0].tolist()
    assert tile[0] == 8 + 7 | (8 + 7) << 4
    assert tile[3] == 8 - 3 | 8 << 4
    assert tile[5] == 8 | (8 - 7) << 4
    assert tile[63] == 8 + 1 | 8 << 4
    assert made.numbers[0, 1].tolist() == [0x88] * 64
    assert made.scales.tolist() == [[[1.0, 2.0], [1.0, 1.0]]]
    assert made.scales.dtype is torch.bfloat16


@each_shape
@each_format
@pytest.mark.parametrize("group", [32, 64])
def test_the_reference_reads_the_same_values_on_its_own(format, shape, group):
    packed = pack_on_any_device(matrix(shape), format, group=group)
    values = dequantise(quantise(matrix(shape), format, group=group))
    assert torch.equal(reference.weight_values(packed), values)
    x = torch.randn(3, shape[1])
    torch.testing.assert_close(reference.linear(x, packed), x @ values.T)


@each_format
def test_a_matrix_is_rounded_panel_by_panel_and_left_alone(format, monkeypatch):
    weight = matrix((13, 150))
    whole, before = quantise(weight, format), weight.clone()
    monkeypatch.setattr(quantised, "_PANEL_BYTES", 4 * 150 * 4)
    parts = quantise(weight, format)
    assert torch.equal(dequantise(parts), dequantise(whole))
    assert torch.equal(weight, before)


@each_format
def test_zeros_stay_zeros_and_what_is_not_finite_stays_in_its_channel(format):
    weight = matrix((4, 128))
    weight[1] = 0
    weight[2, 5] = float("nan")
    weight[3, 5] = float("inf")
    values = dequantise(quantise(weight, format))
    assert bool((values[1] == 0).all())
    assert bool(values[2, :64].isnan().all())
    assert not bool(values[3, :64].isfinite().all())
    assert bool(values[0].isfinite().all())


@each_format
@pytest.mark.parametrize("with_bias", [True, False])
def test_a_packed_weight_knows_what_it_holds(format, with_bias):
    weight = matrix((10, 70), torch.bfloat16)
    bias = torch.ones(10, dtype=torch.bfloat16) if with_bias else None
    packed = pack_on_any_device(weight, format, bias)
    assert (packed.in_features, packed.out_features, packed.format) == (70, 10, format)
    assert packed.dtype is torch.bfloat16
    assert packed.nbytes == sum(storage.nbytes() for storage in packed.storages())
    assert len(packed.storages()) == (3 if with_bias else 2)
    assert packed.bias is None or packed.bias.dtype is torch.bfloat16
    pointers = {storage.data_ptr() for storage in packed.storages()}
    assert weight.untyped_storage().data_ptr() not in pointers


def test_a_bias_shares_nothing_with_scales():
    packed = pack_on_any_device(matrix((4, 64)), "int8", torch.zeros(4))
    assert len({storage.data_ptr() for storage in packed.storages()}) == 3


@each_format
def test_a_cpu_serves_no_quantised_weight(format):
    with pytest.raises(ValueError, match=f"format is '{format}'; it must be one of f32.* on a GPU"):
        pack_linear(torch.zeros(2, 64), format)
    packed: LinearWeight = pack_on_any_device(torch.zeros(2, 64), format)
    with pytest.raises(ValueError, match=f"'{format}', which is multiplied on a GPU only"):
        linear(torch.zeros(1, 64), packed)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: quantise(torch.zeros(2), "int8"), "weight has shape"),
        (lambda: quantise(torch.zeros(2, 2, dtype=torch.int8), "int8"), "weight is int8"),
        (lambda: quantise(torch.zeros(2, 2), "int3"), "format is 'int3'; it must be one of int8"),
        (lambda: quantise(torch.zeros(2, 2), "int4", group=16), "group is 16"),
        (lambda: pack_on_any_device(torch.zeros(2, 2), "int3"), "must be one of f32.*int8"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
