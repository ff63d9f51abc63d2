"""Native tables, norms, activations, sums and query scales against the reference, or float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import kernels
from kernels import reference
from kernels.backends import NATIVE_CPU
from kernels.cpu.native import structs
from kernels.cpu.native.elementwise import embedding_call, norm_call
from kernels.cpu.native.linear import pack_linear
from kernels.cpu.native.program import address, of_tokens, run_once
from kernels.dispatch import using
from kernels.elementwise import KINDS
from tests.kernels.native.native_steps import threads

pytestmark = pytest.mark.usefixtures("native_level")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
TOKENS, WIDTHS = [0, 1, 7, 40], [1, 7, 16, 70, 1030]
NOT_FINITE = [float("nan"), float("inf"), -float("inf")]


def close(got: Tensor, wanted: Tensor) -> None:
    """Within float32's rounding, relative to the largest value."""
    assert got.dtype is torch.float32
    limit = 2e-6 * max(1.0, float(wanted.abs().max()) if wanted.numel() else 0.0)
    torch.testing.assert_close(got, wanted.float(), rtol=0, atol=limit)


@each_dtype
@pytest.mark.parametrize("width", [1, 7, 24, 65])
@pytest.mark.parametrize("index", [torch.int32, torch.int64], ids=str)
def test_rows_of_tables(index: torch.dtype, width: int, dtype: torch.dtype) -> None:
    table, position_table = torch.randn(50, width).to(dtype), torch.randn(20, width).to(dtype)
    for tokens in TOKENS:
        ids, at = torch.randint(0, 50, (tokens,)).to(index), torch.randint(0, 20, (tokens,))
        with using(NATIVE_CPU):
            plain = kernels.embedding(ids, table)
            both = kernels.embedding(
                ids, table, positions=at.to(index), position_table=position_table
            )
        assert torch.equal(plain, table.float()[ids.long()])
        assert torch.equal(both, plain + position_table.float()[at])


@pytest.mark.parametrize("format", ["", "f32", "bf16", "f16", "int8"])
def test_a_table_may_be_packed_and_scaled_and_added_to(format: str) -> None:
    """To what is in another place, or in the very one where the result goes."""
    for width in (33, 511, 1030):
        values, added = torch.randn(9, width), torch.randn(4, width)
        packed = pack_linear(values.clone(), format) if format else values
        ids, plain, out = torch.tensor([8, 0, 3, 3]), torch.empty(4, width), torch.empty(4, width)
        step = structs.Step(tokens=4, token_ids=address(ids))
        run_once(embedding_call(packed, plain), step)
        torch.testing.assert_close(plain, values[ids], rtol=0, atol=0.02 if format else 0.0)
        run_once(embedding_call(packed, out, added=added, scale=5.5), step)
        assert torch.equal(out, plain * 5.5 + added)
        run_once(embedding_call(packed, added, added=added, scale=5.5), step)
        assert torch.equal(added, out)


def test_ids_outside_a_table_are_refused_and_never_read() -> None:
    """Where nobody looks at them first their rows are NaN."""
    table = torch.randn(5, 16)
    for wrong in (-1, 5, 2**40, -(2**40)):
        ids = torch.tensor([1, wrong, 4])
        with using(NATIVE_CPU):
            with pytest.raises(IndexError, match="token_ids has one outside of the table's 5 rows"):
                kernels.embedding(ids, table)
            with pytest.raises(IndexError, match="positions has one outside"):
                kernels.embedding(ids * 0, table, positions=ids, position_table=table)
        for of_positions in (False, True):
            out = torch.zeros(3, 16)
            step = structs.Step(tokens=3, token_ids=address(ids), positions=address(ids))
            run_once(embedding_call(table, out, of_positions=of_positions), step)
            assert bool(out[1].isnan().all())
            assert torch.equal(out[::2], table[[1, 4]])


@each_dtype
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("tokens", TOKENS)
def test_norms(tokens: int, width: int, dtype: torch.dtype) -> None:
    x = torch.randn(tokens, width) * 3 + 1
    weight, bias = torch.randn(width).to(dtype), torch.randn(width).to(dtype)
    for residual in (None, torch.randn(tokens, width)):
        for name, parameters, offset in (
            ("add_rms_norm", (weight,), 1.0),
            ("add_rms_norm", (None,), 0.0),
            ("add_layer_norm", (weight, bias), 0.0),
            ("add_layer_norm", (None, None), 0.0),
        ):
            arguments, before = (x, residual, *parameters, 1e-3), x.clone()
            with using(NATIVE_CPU):
                normed, total = getattr(kernels, name)(*arguments, weight_offset=offset)
            right = getattr(reference, name)(*arguments, weight_offset=offset)
            close(normed, right[0])
            assert torch.equal(total, right[1])
            assert torch.equal(x, before)


@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
@pytest.mark.parametrize("centred", [False, True])
def test_heads_of_a_row_are_normalised_each_by_itself(centred: bool, own: bool) -> None:
    """Of a part of a wider tensor, as queries are of qkv"""
    heads, width = 4, 24
    x = (torch.randn(5, 6 * width) * 3 + 1)[:, width : (heads + 1) * width]
    parameter = torch.randn(heads, width) if own else torch.randn(width)
    wide = x.double().reshape(5, heads, width)
    wide = wide - wide.mean(dim=2, keepdim=True) if centred else wide
    right = wide / ((wide * wide).mean(dim=2, keepdim=True) + 1e-5).sqrt() * parameter + 0.0
    for bias in (None, parameter * 2):
        out = torch.empty(5, heads * width)
        options = {"epsilon": 1e-5, "heads": heads, "centred": centred}
        run_once(norm_call(x, out, weight=parameter, bias=bias, **options), of_tokens(5))
        added = 0.0 if bias is None else bias.double()
        close(out, (right + added).flatten(1))
    if centred:
        with using(NATIVE_CPU):
            normed, total = kernels.add_layer_norm(x, None, parameter, None, 1e-5, heads=heads)
        close(normed, right.flatten(1))
        assert torch.equal(total, x)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", WIDTHS)
def test_activations(width: int, kind: str) -> None:
    for tokens in TOKENS:
        x = torch.randn(tokens, 2 * width) * 4
        before = x.clone()
        with using(NATIVE_CPU):
            alone, gated = kernels.activation(x, kind), kernels.gated_activation(x, kind)
        close(alone, reference.activation(x, kind))
        close(gated, reference.gated_activation(x, kind))
        assert torch.equal(x, before)


@pytest.mark.parametrize("kind", KINDS)
def test_activations_over_all_magnitudes(kind: str) -> None:
    sizes = torch.logspace(-40, 18, 4000)
    x = torch.cat((sizes, -sizes, torch.linspace(-100, 100, 20001), torch.zeros(1)))[None]
    with using(NATIVE_CPU):
        got = kernels.activation(x, kind)
    wanted = reference.activation(x.double(), kind) if kind != "silu" else x * x.double().sigmoid()
    off = (got.double() - wanted.double()).abs()
    assert bool((off <= 1e-6 * wanted.abs() + 1e-6 * x.abs().clamp(max=1) + 1e-44).all())


@each_dtype
def test_xielu(dtype: torch.dtype) -> None:
    for first, second in ((0.3, -0.4), (30.0, -30.0)):
        numbers = [torch.tensor([one]).to(dtype) for one in (first, second, 0.5, -1e-6)]
        for tokens in TOKENS:
            for width in WIDTHS:
                x = torch.randn(tokens, width) * 4
                with using(NATIVE_CPU):
                    got = kernels.xielu(x, *numbers)
                close(got, reference.xielu(x, *numbers))


@pytest.mark.parametrize("bad", NOT_FINITE)
def test_what_is_not_finite_stays_in_its_row_and_channel(bad: float) -> None:
    x = torch.randn(3, 70)
    for place in (0, 31, 69):
        changed, others = x.clone(), torch.arange(70) != place
        changed[1, place] = bad
        with using(NATIVE_CPU):
            for kind in KINDS:
                before, after = kernels.activation(x, kind), kernels.activation(changed, kind)
                right = reference.activation(changed, kind)[1, place]
                if kind in ("relu", "relu2") or bad != -float("inf"):
                    torch.testing.assert_close(after[1, place], right, equal_nan=True)
                assert torch.equal(after[::2], before[::2])
                assert torch.equal(after[1, others], before[1, others])
            for norm, rest in ((kernels.add_rms_norm, ()), (kernels.add_layer_norm, (None,))):
                before, after = (norm(y, None, None, *rest, 1e-5)[0] for y in (x, changed))
                assert torch.equal(after[::2], before[::2])
                assert not bool(after[1, place].isfinite())


@pytest.mark.parametrize("count", [1, 2, 3])
def test_sums_are_scaled_and_clipped(count: int) -> None:
    x, other = torch.randn(13, 70) * 4, torch.randn(13, 70)
    x[2, 3] = torch.nan
    for added in (None, other):
        for factor, limit in ((1.0, 0.0), (0.25, 0.5), (3.0, 2.0)):
            out = torch.empty(13, 70)
            call = structs.Sum(address(x), address(added), address(out), 70, factor, limit)
            with threads(count):
                run_once(call, of_tokens(13))
            right = (x if added is None else x + added) * factor
            right = right.clamp(-limit, limit) if limit else right
            torch.testing.assert_close(out, right, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("width", [1, 7, 8, 4096, 9001])
@pytest.mark.parametrize(("factor", "cap"), [(0.25, 0.0), (1.0, 30.0), (3.0, 2.0)])
def test_logits_are_scaled_and_capped(width: int, factor: float, cap: float) -> None:
    torch.manual_seed(width)
    before = torch.randn(3, width) * 20
    before[1, width // 2] = torch.nan
    after = before.clone()
    call = structs.Logits(address(after), width, factor, cap)
    with threads(2):
        run_once(call, of_tokens(3))
    right = before.double() * factor
    right = ((right / cap).tanh() * cap if cap else right).float()
    torch.testing.assert_close(after, right, rtol=2e-6, atol=2e-6, equal_nan=True)


def test_queries_are_scaled_by_their_positions() -> None:
    positions = torch.tensor([0, 1, 8191, 8192, 100_000, 16384])
    wide = torch.randn(6, 50)
    before = wide.clone()
    step = structs.Step(tokens=6, positions=address(positions))
    run_once(structs.QueryScale(address(wide), wide.stride(0), 30, 8192, 0.1), step)
    factor = torch.log1p((positions // 8192).double()) * 0.1 + 1
    close(wide[:, :30], before[:, :30] * factor[:, None])
    assert torch.equal(wide[:2], before[:2])  # of the first positions the factor is 1
    assert torch.equal(wide[2], before[2])
    assert torch.equal(wide[:, 30:], before[:, 30:])
