"""The native int8 product is exactly what a plain model of it says, in integers and float32."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kernels.cpu.native import structs
from kernels.cpu.native.elementwise import embedding_call
from kernels.cpu.native.levels import choose_level
from kernels.cpu.native.library import levels_here
from kernels.cpu.native.linear import pack_linear
from kernels.cpu.native.program import address, run_once
from kernels.footprint.native_linear import GROUP, ROW_GROUP, TILE
from kernels.linears import LinearWeight
from tests.kernels.native.test_linear import product

SHAPES = [(1, 1), (15, 63), (16, 32), (17, 64), (50, 65), (33, 257), (130, 1030), (1041, 130)]
UNFUSED = ("portable",)  # levels that round a product before it is added


def in_groups(values: Tensor, size: int = GROUP) -> Tensor:
    """[n, inputs] as [n, groups, size], padded with zeros to whole groups of weights."""
    missing = -values.shape[1] % GROUP
    return torch.nn.functional.pad(values, (0, missing)).view(values.shape[0], -1, size)


def weight_numbers(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers and scales: of the bfloat16 at or above the largest / 127, the smallest."""
    groups = in_groups(weight.float())
    largest = groups.abs().amax(dim=2)
    scale = (largest / 127).bfloat16()
    above = (scale.view(torch.int16) + 1).view(torch.bfloat16)
    scale = torch.where(scale.float() * 127 < largest, above, scale).float()
    numbers = torch.where(scale[..., None] > 0, (groups / scale[..., None]).round(), 0)
    return numbers.long(), scale


def row_numbers(x: Tensor) -> tuple[Tensor, Tensor]:
    groups = in_groups(x, ROW_GROUP)
    largest = groups.abs().amax(dim=2)
    tiny = largest < 2.0**-120
    factor = torch.where(tiny, torch.zeros(()), torch.tensor(127.0) / largest)
    numbers = (groups * factor[..., None]).round().long()
    return numbers, torch.where(tiny, torch.zeros(()), largest / 127)


def model(x: Tensor, weight: Tensor, *, fused: bool) -> Tensor:
    """Sums of groups as integers, each times both scales added to the output in float32."""
    (rows, row_scales), (channels, scales) = row_numbers(x), weight_numbers(weight)
    channels = channels.view(channels.shape[0], -1, ROW_GROUP)
    total = torch.zeros(x.shape[0], weight.shape[0])
    for group in range(rows.shape[1]):
        sums = rows[:, group] @ channels[:, group].T
        both = scales[:, group * ROW_GROUP // GROUP] * row_scales[:, group, None]
        if fused:
            total = (sums.double() * both.double() + total.double()).float()
        else:
            total = sums.float() * both + total
    return total


def unpacked(packed: LinearWeight) -> tuple[Tensor, Tensor]:
    """Numbers and scales as they lie: a tile's groups are [16 quads][16 channels][4], scales."""
    channels, inputs = packed.shape
    groups = -(-inputs // GROUP)
    tiles = packed.weight.view(-1, groups, GROUP * TILE + 2 * TILE)
    numbers = tiles[..., : GROUP * TILE].contiguous().view(torch.int8)
    numbers = numbers.view(-1, groups, GROUP // 4, TILE, 4).permute(0, 3, 1, 2, 4)
    scales = tiles[..., GROUP * TILE :].contiguous().view(torch.bfloat16).transpose(1, 2)
    whole = numbers.reshape(-1, groups, GROUP), scales.reshape(-1, groups)
    return whole[0][:channels].long(), whole[1][:channels].float()


def weights(channels: int, inputs: int) -> Tensor:
    """Channels of magnitudes from a millionth to a thousand, and one of zeros."""
    made = torch.randn(channels, inputs) * 10.0 ** torch.linspace(-6, 3, channels)[:, None]
    made[channels // 2] = 0
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_weights_are_quantised_as_the_model_says(
    shape: tuple[int, int], dtype: torch.dtype, native_level: str
) -> None:
    plain = weights(*shape).to(dtype)
    numbers, scales = unpacked(pack_linear(plain, "int8"))
    right = weight_numbers(plain)
    assert torch.equal(numbers, right[0])
    assert torch.equal(scales, right[1])
    off = (numbers * scales[..., None] - in_groups(plain.float())).abs()
    assert bool((off <= 0.5001 * scales[..., None]).all())
    assert int(numbers.abs().max()) <= 127


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products_are_those_of_the_model(shape: tuple[int, int], native_level: str) -> None:
    plain = weights(*shape)
    packed = pack_linear(plain, "int8")
    for rows in (1, 2, 3, 4, 5, 13):
        x = torch.randn(rows, shape[1]) * 10.0 ** torch.linspace(-4, 4, rows)[:, None]
        x[rows // 2, ::3] = 0
        right = model(x, plain, fused=native_level not in UNFUSED)
        assert torch.equal(product(x, packed), right)


def test_every_number_of_either_side_and_groups_that_are_nearly_nothing(native_level: str) -> None:
    """Groups that hold -127 to 127, and magnitudes whose inverse is no float32."""
    ramp = torch.arange(-127.0, 129.0).clamp(max=127).view(4, GROUP)
    ramp[:, 0] = 127
    plain = ramp.repeat(5, 1)
    for size in (1.0, 2.0**-100, 2.0**-125, 2.0**-140, 0.0, 2.0**60):
        x = ramp * size
        right = model(x, plain, fused=native_level not in UNFUSED)
        assert torch.equal(product(x, pack_linear(plain, "int8")), right)


def test_every_level_that_fuses_has_the_same_bits(native_level: str) -> None:
    """A machine's answers do not depend on which of them it runs."""
    if native_level in UNFUSED:
        pytest.skip(f"the level {native_level} fuses nothing")
    plain, x = weights(50, 1030), torch.randn(7, 1030)
    here = product(x, pack_linear(plain, "int8"))
    for other in levels_here():
        if other not in UNFUSED:
            choose_level(other)
            assert torch.equal(product(x, pack_linear(plain, "int8")), here)


def test_rows_of_a_packed_table_are_its_values(native_level: str) -> None:
    """Of every format: a head that is tied to the embedding is its table too."""
    for format, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16), ("f16", torch.half)):
        plain = torch.randn(50, 65).to(dtype)
        assert torch.equal(table_rows(pack_linear(plain.clone(), format)), plain.float())
    plain = weights(50, 65)
    numbers, scales = weight_numbers(plain)
    right = (numbers * scales[..., None]).flatten(1)[:, :65]
    assert torch.equal(table_rows(pack_linear(plain, "int8")), right)


def table_rows(table: LinearWeight) -> Tensor:
    ids = torch.arange(table.out_features)
    out = torch.empty(table.shape)
    step = structs.Step(tokens=ids.shape[0], token_ids=address(ids))
    run_once(embedding_call(table, out), step)
    return out
