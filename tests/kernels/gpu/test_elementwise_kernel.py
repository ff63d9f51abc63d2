"""Activations and gathers against the reference."""

from __future__ import annotations

import math

import pytest
import torch

from kernels import reference
from kernels.elementwise import KINDS
from kernels.gpu import elementwise

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Relative to the largest value: a few roundings in float32, or one rounding to 16 bits.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}


def given(shape, dtype, device, seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator) * scale).to(device, dtype)


def close(got, wanted, dtype):
    assert got.dtype is dtype
    limit = TOLERANCE[dtype] * max(1.0, float(wanted.float().abs().max()))
    torch.testing.assert_close(got.float(), wanted.float(), rtol=0, atol=limit)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [1, 70, 513])
def test_activations(dtype, kind, width, device):
    """Alone and gated, at widths below, at and above a block's."""
    x = given((5, 2 * width), dtype, device, seed=width, scale=4.0)
    before = x.clone()
    close(elementwise.activation(x, kind), reference.activation(x.float(), kind), dtype)
    close(elementwise.gated_activation(x, kind), reference.gated_activation(x.float(), kind), dtype)
    assert torch.equal(x, before)


@pytest.mark.parametrize("kind", KINDS)
def test_an_activation_is_accurate_wherever_it_is_small(kind, device):
    """Relative to each value, not to the largest: the tails too, and no overflow far out."""
    points = torch.linspace(-12, 12, 2001, device=device)
    x = torch.cat((points, torch.tensor([-1e10, -1e4, -100.0, 100.0, 1e10], device=device)))
    exact = {
        "silu": lambda v: v / (1 + math.exp(min(-v, 700))),
        "gelu_tanh": lambda v: (
            v / (1 + math.exp(min(-2 * math.sqrt(2 / math.pi) * (v + 0.044715 * v**3), 700)))
        ),
        "gelu_erf": lambda v: 0.5 * v * math.erfc(-v / math.sqrt(2)),
        "relu": lambda v: max(v, 0.0),
        "relu2": lambda v: max(v, 0.0) ** 2,
    }[kind]
    wanted = torch.tensor([exact(v) for v in x.tolist()], dtype=torch.float64)
    got = elementwise.activation(x.unsqueeze(0), kind)[0].double().cpu()
    # 1 + erf(x) cancels below 0: absolutely accurate there, as torch's own is.
    absolute = 1e-6 if kind == "gelu_erf" else 1e-9
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=absolute)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_number_stays_none(kind, device):
    x = torch.tensor([[math.nan, 1.0, math.nan, 2.0]], device=device)
    assert elementwise.activation(x, kind).isnan().tolist() == [[True, False, True, False]]
    assert elementwise.gated_activation(x, kind).isnan().tolist() == [[True, False]]


NUMBERS = (0.3, -0.4, 0.5, -1e-6)  # as a checkpoint has them


def numbers(dtype, device):
    return [torch.tensor([number]).to(device, dtype) for number in NUMBERS]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [1, 70, 513])
def test_xielu(dtype, width, device):
    x = given((5, 2 * width), dtype, device, seed=width, scale=4.0)[:, :width]
    before = x.clone()
    theirs = numbers(dtype, device)
    close(elementwise.xielu(x, *theirs), reference.xielu(x.float(), *theirs), dtype)
    assert torch.equal(x, before)


def test_xielu_is_accurate_wherever_it_is_small(device):
    """Relative to each value around 0, where an exponential less 1 has few bits left; further down
    the function crosses 0."""
    near = [-1e-3, -1e-6, -1e-9, 0.0, 1e-9, 1e-3, *torch.linspace(-0.5, 0.5, 4001).tolist()]
    far = [-1e10, -100.0, 100.0, 1e10, *torch.linspace(-8, 8, 4001).tolist()]
    theirs = numbers(torch.float32, device)
    for points, absolute in ((near, 1e-12), (far, 5e-7)):
        x = torch.tensor([points], device=device)
        wanted = reference.xielu(x.double(), *theirs)
        got = elementwise.xielu(x, *theirs).double()
        torch.testing.assert_close(got, wanted, rtol=3e-6, atol=absolute)
    assert elementwise.xielu(x * math.nan, *theirs).isnan().all()


def test_rows_of_a_wider_tensor(device):
    """The gaps hold NaN: a read beyond a row would show."""
    wide = torch.full((7, 640), math.nan, dtype=torch.float16, device=device)
    wide[:, 20:620] = given((7, 600), torch.float16, device, seed=1)
    x = wide[:, 20:620]
    for got, wanted in (
        (elementwise.activation(x, "silu"), reference.activation(x.float(), "silu")),
        (elementwise.gated_activation(x, "silu"), reference.gated_activation(x.float(), "silu")),
        (elementwise.activation(x[:, :9].T, "relu"), x[:, :9].T.float().relu()),
    ):
        assert got.is_contiguous()
        close(got, wanted, torch.float16)


def test_many_elements_take_the_large_block(device):
    x = given((2, 2 * 131_072 + 6), torch.bfloat16, device, seed=2)
    close(
        elementwise.gated_activation(x, "silu"),
        reference.gated_activation(x.float(), "silu"),
        torch.bfloat16,
    )


def test_nothing_gives_nothing(device):
    empty = torch.empty(0, 8, device=device)
    assert elementwise.activation(empty, "relu").shape == (0, 8)
    assert elementwise.gated_activation(empty, "relu").shape == (0, 4)
    ids = torch.empty(0, dtype=torch.int64, device=device)
    table = torch.empty(3, 8, device=device)
    assert elementwise.embedding(ids, table, None, None).shape == (0, 8)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("index", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("width", [24, 1024, 1030])
def test_embedding_to_the_bit(dtype, index, width, device):
    table, position_table = (given((n, width), dtype, device, seed=n) for n in (50, 20))
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, 50, (9,), dtype=index, generator=generator).to(device)
    ids[0], ids[1], ids[2] = 0, 49, ids[3]
    positions = torch.randint(0, 20, (9,), dtype=torch.int64, generator=generator).to(device)
    before = table.clone()
    got = elementwise.embedding(ids, table, None, None)
    assert torch.equal(got, table[ids.long()])
    got = elementwise.embedding(ids, table, positions, position_table)
    options = {"positions": positions, "position_table": position_table}
    assert torch.equal(got, reference.embedding(ids, table, **options))
    assert torch.equal(table, before)


def test_ids_and_positions_of_a_larger_tensor(device):
    table = given((50, 16), torch.float32, device, seed=4)
    both = torch.tensor([[7, 1], [0, 2], [49, 3]], dtype=torch.int32, device=device)
    got = elementwise.embedding(both[:, 0], table, both[:, 1], table)
    assert torch.equal(got, table[both[:, 0].long()] + table[both[:, 1].long()])
