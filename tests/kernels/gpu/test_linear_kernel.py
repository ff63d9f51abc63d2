"""The matrix product's kernels against the reference: every format, form, edge and epilogue."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kernels import reference, tuning
from kernels.footprint import gpu_linear as gpu_product_forms
from kernels.gpu import linear as launcher
from kernels.gpu.linear import linear
from kernels.linears import LinearWeight, pack_on_any_device
from kernels.quantization import INT4_OFFSET, pack_int4

# The interpreter turns one-element arrays into loop bounds, which NumPy would rather not.
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
PLAIN = {"f32": F32, "bf16": BF16, "f16": F16}
# Relative to the largest value: sums in another order, or one rounding to 16 bits (the library's
# product and the splits round once more).
TOLERANCE = {F32: 4e-6, BF16: 1.6e-2, F16: 2e-3}
FORMS = ("reduce", "dot", "tiled", "by_library", "by_panels")


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """Fresh memory is NaN: whatever a kernel leaves out shows."""
    real = torch.empty

    def empty(*args, **kwargs):
        tensor = real(*args, **kwargs)
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(torch, "empty", empty)


@pytest.fixture
def forms(monkeypatch):
    """The forms that products took, in order."""
    seen = []
    for name in FORMS:
        run = getattr(launcher._Launch, name)

        def spied(self, *args, _run=run, _name=name):
            seen.append(_name)
            return _run(self, *args)

        monkeypatch.setattr(launcher._Launch, name, spied)
    return seen


def random(shape, dtype, device, seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator) * scale).to(device, dtype)


def packed(out, width, format, dtype, device, *, bias=False, **options):
    weight = random((out, width), dtype, device, seed=out + width, scale=width**-0.5)
    given = random((out,), dtype, device, seed=3) if bias else None
    return pack_on_any_device(weight, format, given, **options)


def rows_of(count, width, dtype, device):
    """Rows of a longer buffer whose other rows are NaN."""
    x = torch.full((count + 40, width), float("nan"), device=device, dtype=dtype)
    x[:count] = random((count, width), dtype, device, seed=count)
    return x[:count]


def check(weight, count, *, activation=None, residual=False):
    dtype, device = weight.dtype, weight.weight.device
    x = rows_of(count, weight.in_features, dtype, device)
    extra = random((count, weight.out_features), dtype, device, seed=9) if residual else None
    before = (x.clone(), None if extra is None else extra.clone())
    got = linear(x, weight, activation, extra)
    wanted = reference.linear(x, weight, activation=activation, residual=extra)
    assert got.dtype is dtype
    limit = TOLERANCE[dtype] * max(1.0, float(wanted.float().abs().max()))
    torch.testing.assert_close(got.float(), wanted.float(), rtol=0, atol=limit)
    assert torch.equal(x, before[0])
    assert extra is None or torch.equal(extra, before[1])
    return got


@pytest.mark.parametrize("rows", [1, 2, 3, 8, 17, 32, 33, 40])
@pytest.mark.parametrize("format", ["f32", "int8", "int4", "fp8"])
def test_any_number_of_rows_of_every_format(format, rows, device):
    """37 output and 200 input channels: no multiple of any tile. Sums in float32 leave no room."""
    weight = packed(37, 200, format, F32, device, bias=rows % 2 == 0)
    check(weight, rows, activation="silu" if rows % 3 == 0 else None, residual=rows % 4 < 2)


@pytest.mark.parametrize("rows", [1, 5, 40])
@pytest.mark.parametrize(
    ("format", "dtype"),
    [("f16", F16), ("bf16", BF16), ("int8", F16), ("int4", BF16), ("int4", F16), ("fp8", F16)],
    ids=str,
)
def test_rows_of_16_bits(format, dtype, rows, device):
    weight = packed(9, 136, format, dtype, device, bias=True)
    check(weight, rows, activation="gelu_tanh", residual=True)


@pytest.mark.parametrize("rows", [2, 6, 40])
@pytest.mark.parametrize(("format", "dtype"), [("f32", F32), ("int8", F16), ("int4", F32)], ids=str)
def test_shapes_that_are_whole_tiles(format, dtype, rows, device):
    weight = packed(64, 1024, format, dtype, device)
    check(weight, rows)


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh", "gelu_erf", "relu"])
@pytest.mark.parametrize(("rows", "form"), [(1, "reduce"), (4, "dot"), (40, "by_library")])
def test_every_activation_comes_before_the_residual(activation, rows, form, device, forms):
    for bias, residual in ((True, True), (False, False), (False, True)):
        weight = packed(20, 40, "f32", F32, device, bias=bias)
        check(weight, rows, activation=activation, residual=residual)
    assert set(forms) == {form}


@pytest.mark.parametrize("rows", [1, 33])
@pytest.mark.parametrize("group", [32, 64])
@pytest.mark.parametrize("width", [32, 64, 96, 128, 130])
def test_int4_in_either_group_and_any_width(width, group, rows, device):
    check(packed(18, width, "int4", F32, device, group=group), rows)


def test_the_table_says_which_form_a_product_takes(device, forms):
    for format in ("f32", "int8", "int4"):
        for rows in (1, 2, 3, 32, 33, 1024):
            check(packed(16, 64, format, F32, device), rows)
    plain = ["reduce", "reduce", "dot", "dot", "by_library", "by_library"]
    assert forms[:6] == plain
    assert forms[6:12] == ["reduce", "reduce", "dot", "dot", "tiled", "by_panels"]
    assert forms[12:] == ["dot", "dot", "dot", "dot", "tiled", "by_panels"]


@pytest.mark.parametrize("format", ["int8", "int4", "fp8"])
def test_many_rows_of_a_quantised_weight_go_panel_by_panel(format, device, monkeypatch, forms):
    """Panels of 128 output channels, the last one cut."""
    monkeypatch.setattr(gpu_product_forms, "PANEL_BYTES", 1)
    weight = packed(140, 72, format, F32, device, bias=True)
    check(weight, 1030, activation="relu", residual=True)
    assert forms == ["by_panels"]


@pytest.mark.parametrize(("format", "width"), [("f16", 2100), ("int8", 2048), ("int4", 2100)])
def test_split_sums_are_the_same_bits_every_time(format, width, device):
    tuned = tuning.lookup(
        "linear_dot", tuning.architecture(device), format=format, dtype="f16", rows=5, out=40,
        **{"in": width},
    )  # fmt: skip
    assert tuned.blocks["SPLITS"] > 1
    weight = packed(40, width, format, F16, device, bias=True)
    first = check(weight, 5, activation="gelu_erf", residual=True)
    assert torch.equal(first, check(weight, 5, activation="gelu_erf", residual=True))


@pytest.mark.parametrize(
    ("format", "dtype"),
    [("f32", F32), ("int8", F32), ("int4", F32), ("fp8", F32), ("bf16", BF16), ("int4", BF16)],
    ids=str,
)
def test_a_batch_invariant_row_is_the_same_bits_in_any_company(format, dtype, device):
    check_company(format, dtype, device)


@pytest.mark.parametrize(
    ("format", "bug"), [("f32", "tiles"), ("f32", "splits"), ("int4", "splits")]
)
def test_an_order_that_depends_on_the_rows_is_seen(format, bug, device, monkeypatch):
    """Two ways to break the promise: tiles of fewer channels, or split sums, for a few rows."""
    launch = launcher._Launch
    tuned, tiled = launch.tuning, launch.tiled

    def by_rows(self, kernel):
        found = tuned(self, kernel)
        few = {"BLOCK_K": 16, "BLOCK_N": 16} if self._rows < 8 else {}
        split = {"SPLITS": 2, "BLOCK_K": 32} if bug == "splits" and kernel == "linear_dot" else few
        return replace(found, blocks=found.blocks | split)

    def by_form(self, kernel):
        return launch.dot(self) if self._rows < 8 else tiled(self, kernel)

    monkeypatch.setattr(launch, "tuning", by_rows)
    if bug == "splits":
        monkeypatch.setattr(launcher, "splits_allowed", lambda splits, *_: splits)
        monkeypatch.setattr(launch, "tiled", by_form)
    with pytest.raises(AssertionError):
        check_company(format, F32, device)


def check_company(format, dtype, device):
    weight = packed(40, 136, format, dtype, device, bias=True, batch_invariant=True)
    x = rows_of(130, 136, dtype, device)
    extra = random((130, 40), dtype, device, seed=9)
    whole = linear(x, weight, "silu", extra)
    wanted = reference.linear(x, weight, activation="silu", residual=extra)
    torch.testing.assert_close(whole, wanted, rtol=0, atol=TOLERANCE[dtype] * 8)
    for first, last in ((0, 1), (5, 7), (3, 36), (1, 129)):
        part = linear(x[first:last], weight, "silu", extra[first:last])
        assert torch.equal(part, whole[first:last]), (first, last)
    order = torch.randperm(130, generator=torch.Generator().manual_seed(1)).to(device)
    assert torch.equal(linear(x[order], weight, "silu", extra[order]), whole[order])


def test_tiles_of_many_channels_are_visited_in_bands(device):
    """10 tiles of output channels, 8 to a band, and 2 of rows."""
    check(packed(600, 32, "int8", F32, device), 100)


def test_other_forms_are_not_the_same_bits(device):
    """Else the test above would show nothing."""
    weight = packed(70, 200, "f32", F32, device)
    x = rows_of(70, 200, F32, device)
    whole = linear(x, weight, None, None)
    assert any(
        not torch.equal(linear(x[:rows], weight, None, None), whole[:rows]) for rows in (1, 4)
    )


def all_numbers(format, device):
    """Every number of a format [8, 32], and the weight that holds them with scales of one."""
    if format == "int4":
        numbers = (torch.arange(8 * 64) % 15 - 7).to(torch.int8).view(8, 2, 32)
        nibbles, scales = pack_int4(numbers), torch.ones(1, 8, 2, dtype=BF16)
        values, held = numbers.float().view(8, 64), nibbles
        assert set(numbers.flatten().tolist()) == set(range(8 - INT4_OFFSET - 7, 8))
    else:
        codes = torch.arange(256, dtype=torch.uint8)
        held = codes.view(torch.int8 if format == "int8" else torch.float8_e4m3fn).view(8, 32)
        if format == "fp8":
            held.view(torch.uint8)[codes.view(8, 32) % 128 == 127] = 0  # no NaN
        values, scales = held.float(), torch.ones(8)
    return values.to(device), (held.to(device), scales.to(device))


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("dtype", [F32, F16, BF16], ids=str)
@pytest.mark.parametrize("format", ["int8", "int4", "fp8"])
def test_every_number_is_widened_exactly(format, dtype, arch, device, monkeypatch):
    """Rows that pick single input channels, in each form; fp8 by its bits before sm_89."""
    monkeypatch.setattr(tuning, "architecture", lambda _: arch)
    values, (held, scales) = all_numbers(format, device)
    width = values.shape[1]
    pick = torch.eye(width, device=device, dtype=dtype)
    for batch_invariant in (False, True):
        weight = LinearWeight(
            format, held, None, scales, (8, width), dtype, batch_invariant=batch_invariant
        )
        for first, last in ((0, 1), (1, 3), (0, 32), (0, width)):
            got = linear(pick[first:last].contiguous(), weight, None, None)
            assert torch.equal(got.float(), values.t()[first:last].contiguous())
    many = pick.repeat(1024 // width + 1, 1)
    weight = LinearWeight(format, held, None, scales, (8, width), dtype)
    assert torch.equal(linear(many, weight, None, None)[-width:].float(), values.t())


def test_no_rows_and_no_outputs(device):
    assert linear(
        torch.zeros(0, 64, device=device), packed(8, 64, "f32", F32, device), None, None
    ).shape == (0, 8)
    weight = packed(0, 64, "f32", F32, device)
    assert linear(torch.zeros(3, 64, device=device), weight, None, None).shape == (3, 0)


def test_strided_rows_and_residuals_are_taken(device):
    weight = packed(20, 40, "f32", F32, device)
    wide = random((3, 80), F32, device, seed=1)
    extra = random((3, 60), F32, device, seed=2)
    got = linear(wide[:, 40:], weight, None, extra[:, 20:40])
    wanted = reference.linear(wide[:, 40:], weight, residual=extra[:, 20:40])
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 4])
def test_large_numbers_of_few_bits_add_up_in_float32(rows, device):
    """A sum of 4096 small products next to a large one would vanish in 16-bit accumulation."""
    values = torch.full((8, 4097), 2.0**-6, dtype=F16, device=device)
    values[:, 0] = 64
    x = torch.ones(rows, 4097, dtype=F16, device=device)
    got = linear(x, pack_on_any_device(values, "f16"), None, None)
    assert torch.equal(got, torch.full((rows, 8), 128.0, dtype=F16, device=device))


@pytest.mark.parametrize("format", ["bf16", "int8", "int4"])
@pytest.mark.parametrize("rows", [1, 8, 32, 100, 1024, 5000])
def test_the_scratch_of_a_product_stays_in_its_plan(rows, format, device, monkeypatch):
    """What is allocated beside the result, even by a table that splits as often as it can; kernels
    and products are not run."""
    blocks = {"BLOCK_N": 16, "BLOCK_K": 128, "SPLITS": 64}
    greedy = tuning.Row("linear_dot", (), {}, tuning.Tuning(blocks, 1, 3))
    width = 2560
    taken = []
    real = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: taken.append(real(*a, **k)) or taken[-1])
    for name in (
        "linear_reduce",
        "linear_dot",
        "linear_tiled",
        "linear_dequantise",
        "linear_finish",
    ):
        monkeypatch.setattr(launcher, name, _Silent())
    for name in ("mm", "addmm"):
        monkeypatch.setattr(torch, name, lambda *a, **k: None)
    monkeypatch.setattr(gpu_product_forms, "PANEL_BYTES", 4 << 20)
    for out in (5000, 3000, 512):
        zeros = torch.zeros(out, width, dtype=BF16, device=device)
        weight = pack_on_any_device(zeros, format)
        taken.clear()
        with tuning.trying([greedy], tuning.architecture(device)):
            linear(real(rows, width, dtype=BF16, device=device), weight, None, None)
        beside = sum(tensor.nbytes for tensor in taken) - rows * out * 2
        planned = gpu_product_forms.gpu_product_temporaries(rows, width, out, 2, format=format)
        assert beside <= sum(nbytes for _, nbytes in planned) <= 4 << 20


class _Silent:
    def __getitem__(self, grid):
        return lambda *args, **kwargs: None
