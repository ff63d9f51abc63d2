"""The native product with packed weights: near float64, the same bits in any company."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import kernels
from kernels.backends import NATIVE_CPU
from kernels.cpu.native.linear import pack_linear
from kernels.dispatch import using
from kernels.linears import LinearWeight
from tests.kernels.native.native_steps import threads

pytestmark = pytest.mark.usefixtures("native_level")

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16, "int8": torch.float32}
CHANNELS, INPUTS = [1, 15, 16, 17, 50, 130], [1, 2, 63, 64, 65, 1030]
each_format = pytest.mark.parametrize("format", DTYPES)


def matrix(channels: int, inputs: int, format: str) -> Tensor:
    return (torch.randn(channels, inputs) / inputs**0.5).to(DTYPES[format])


def product(x: Tensor, weight: LinearWeight, residual: Tensor | None = None) -> Tensor:
    with using(NATIVE_CPU):
        return kernels.linear(x, weight, residual=residual)


@each_format
@pytest.mark.parametrize("inputs", INPUTS)
@pytest.mark.parametrize("channels", CHANNELS)
def test_products_of_any_size(channels: int, inputs: int, format: str) -> None:
    """Of int8 no value is off by more than half a step: a 127th of the largest of its group."""
    plain = matrix(channels, inputs, format)
    bias = torch.randn(channels).to(plain.dtype).float()  # a weight keeps it in its own format
    for added in (None, bias):
        packed = pack_linear(plain.clone(), format, added)
        for rows in (1, 2, 5, 13):
            x, residual = torch.randn(rows, inputs), torch.randn(rows, channels)
            right = x.double() @ plain.double().T
            right = right if added is None else right + added.double()
            limit = 3e-6
            if format == "int8":
                step = float(x.abs().max() * plain.float().abs().max()) / 127
                limit = (step + 1e-4) * inputs**0.5
            for last in (None, residual):
                got = product(x, packed, last)
                wanted = right if last is None else right + last.double()
                assert got.dtype is torch.float32
                torch.testing.assert_close(got.double(), wanted, rtol=0, atol=limit)


@each_format
def test_a_row_is_the_same_bits_in_any_company_and_on_any_threads(format: str) -> None:
    """As many rows as units of every kind have, in chunks, alone, and behind other rows. With many
    channels, for as many threads as have enough of them, few rows read several tiles at once."""
    for channels, inputs in ((50, 1030), (130, 65), (16, 512), (33, 1), (2081, 65), (1041, 520)):
        packed = pack_linear(matrix(channels, inputs, format), format, torch.randn(channels))
        x, residual = torch.randn(40, inputs), torch.randn(40, channels)
        with threads(1):
            whole = product(x, packed, residual)
        for count in (1, 2, 3):
            with threads(count):
                assert torch.equal(product(x, packed, residual), whole)
                for rows in (*range(1, 14), 40):
                    for start in {0, 40 - rows}:
                        part = slice(start, start + rows)
                        got = product(x[part], packed, residual[part])
                        assert torch.equal(got, whole[part]), (channels, inputs, rows, count)


@each_format
def test_weights_are_packed_alike_on_any_threads(format: str) -> None:
    for channels, inputs in ((50, 65), (160, 130)):
        plain = matrix(channels, inputs, format)
        with threads(1):
            alone = pack_linear(plain.clone(), format)
        for count in (2, 3):
            with threads(count):
                assert torch.equal(pack_linear(plain.clone(), format).weight, alone.weight)


def test_a_weight_that_takes_its_own_bytes_is_packed_in_place() -> None:
    for channels, in_place in ((32, True), (33, False)):
        plain = matrix(channels, 64, "bf16")
        packed = pack_linear(plain, "bf16")
        assert (packed.weight.data_ptr() == plain.data_ptr()) is in_place


@pytest.mark.parametrize("format", ["bf16", "f16"])
def test_sums_are_in_float32(format: str) -> None:
    """Many small products next to a large one would vanish in 16-bit accumulation."""
    weight = torch.full((8, 4097), 2.0**-6).to(DTYPES[format])
    weight[:, 0] = 64
    packed = pack_linear(weight, format)
    for rows in (1, 4, 20):
        assert torch.equal(product(torch.ones(rows, 4097), packed), torch.full((rows, 8), 128.0))


@pytest.mark.parametrize("format", ["bf16", "f16"])
def test_every_pattern_of_16_bits_is_widened_exactly(format: str) -> None:
    patterns = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(DTYPES[format])
    table = torch.where(patterns.isfinite(), patterns, 0.5).view(2**10, 2**6)
    packed = pack_linear(table.clone(), format)
    for rows in (1, 3, 6):  # read in place by few rows, and widened for many
        ones = torch.eye(2**6)
        for start in range(0, 2**6 - rows, 11):
            got = product(ones[start : start + rows], packed)
            assert torch.equal(got, table.float().T[start : start + rows])


@each_format
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_in_its_row(bad: float, format: str) -> None:
    packed = pack_linear(matrix(50, 130, format), format)
    for rows in (1, 2, 5, 13):
        x = torch.randn(rows, 130)
        before = product(x, packed)
        for row in range(0, rows, 2):
            for place in (0, 64, 129):
                changed = x.clone()
                changed[row, place] = bad
                after = product(changed, packed)
                assert not bool(after[row].isfinite().any())
                others = torch.arange(rows) != row
                assert torch.equal(after[others], before[others])


@each_format
def test_a_weight_that_is_not_finite_stays_in_its_channel(format: str) -> None:
    for bad in (float("nan"), float("inf")):
        plain = matrix(50, 130, format)
        before = product(torch.ones(3, 130), pack_linear(plain.clone(), format))
        plain[17, 70] = bad
        after = product(torch.ones(3, 130), pack_linear(plain, format))
        assert not bool(after[:, 17].isfinite().any())
        others = torch.arange(50) != 17
        assert torch.equal(after[:, others], before[:, others])


def test_an_activation_ends_a_product_before_the_residual_is_added() -> None:
    x, plain, residual = torch.randn(3, 20), matrix(18, 20, "f32"), torch.randn(3, 18)
    packed = pack_linear(plain.clone(), "f32")
    with using(NATIVE_CPU):
        got = kernels.linear(x, packed, activation="silu", residual=residual)
        nothing = kernels.linear(x[:0], packed)
    wanted = torch.nn.functional.silu(x @ plain.T) + residual
    torch.testing.assert_close(got, wanted, rtol=0, atol=3e-6)
    assert nothing.shape == (0, 18)


def test_what_there_is_not_is_refused() -> None:
    with pytest.raises(ValueError, match="format is 'int4'; it must be one of f32, bf16"):
        pack_linear(torch.zeros(2, 2), "int4")
    packed = pack_linear(torch.zeros(2, 2), "bf16")
    with using(NATIVE_CPU), pytest.raises(ValueError, match="x is bfloat16; it must be one of fl"):
        kernels.linear(torch.zeros(1, 2, dtype=torch.bfloat16), packed)
