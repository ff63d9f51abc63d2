"""Sampling on a GPU: exactly the reference's tokens, over every feature and awkward vocabulary."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys

import pytest
import torch

from kernels import SamplingTensors, SparseBias, SparseIds, reference
from kernels.footprint.gpu_sampling import (
    MAX_VOCAB,
    TILE,
    SamplingScratch,
    sampling_workspace_bytes,
)
from kernels.gpu import sampling
from tests.kernels.gpu.sampling_checks import NUMBERS_OUT_OF_RANGE, SMALL, check, drawing, sampled
from tests.kernels.sampling_cases import chi_square, moved, random_case, row_of

pytestmark = NUMBERS_OUT_OF_RANGE


@pytest.mark.parametrize("vocab", [1, 2, 31, 33, 63, 64, 65, 129, 300])
@pytest.mark.parametrize("seed", range(2))
def test_the_same_tokens_as_the_reference(vocab, seed, device, watch):
    check(*random_case(100 * vocab + seed, vocab), device, **SMALL)


# Each of six vocabularies with each remainder that random_case looks at; the sweep has more.
@pytest.mark.parametrize(
    "seed",
    [pytest.param(n, marks=pytest.mark.slow if n < 42 else pytest.mark.sweep) for n in range(84)],
)
def test_the_same_tokens_as_the_reference_over_many_mixes(seed, device, watch):
    check(*random_case(seed, [5, 37, 100, 190, 257, 600][seed % 6]), device, **SMALL)


@pytest.mark.parametrize("vocab", [TILE - 1, TILE, TILE + 1, 2 * TILE + 384])
def test_vocabularies_about_a_shipped_tile(vocab, device, watch):
    logits, params = random_case(vocab, vocab, rows=3, plain=False)
    params = dataclasses.replace(
        params,
        temperature=torch.tensor([1.0, 0.0, 0.7]),
        top_k=torch.tensor([0, 0, 40]),
        top_p=None,
        min_p=None,
    )
    check(logits, params, device)


@pytest.mark.parametrize("seed", [2, 9])
def test_a_row_alone_and_among_neighbours_is_the_same_token(seed, device, watch):
    logits, params = random_case(seed, 150, rows=4, plain=False)
    together = sampled(logits, params, device, **SMALL)
    for row in range(4):
        alone = sampled(logits[row : row + 1], row_of(params, row), device, **SMALL)
        assert alone.token_ids[0] == together.token_ids[row]
        assert alone.non_finite[0] == together.non_finite[row]


# The limits are exceeded by one seed in a thousand, and the seed is fixed.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "kept", "limit"),
    [
        ({}, 9, 26.1),
        ({"top_k": torch.tensor(3)}, 3, 13.9),
        ({"top_p": torch.tensor(0.85)}, 5, 18.5),
    ],
)
def test_draws_follow_the_softmax_of_what_is_kept(options, kept, limit, device):
    count = 60 if device.type == "cpu" else 20_000  # interpreted draws are slow
    logits = torch.tensor([2.0, 1.5, 1.0, 0.9, 0.5, 0.2, 0.0, -0.5, -1.0])
    params = drawing(count, **{name: value.expand(count) for name, value in options.items()})
    out = sampled(logits.expand(count, -1), params, device, tile=16, group=4, capacity=16)
    observed = torch.bincount(out.token_ids, minlength=9)
    assert observed[kept:].sum() == 0
    assert chi_square(observed[:kept], logits[:kept].softmax(0)) < limit


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_that_are_not_finite_are_flagged_and_harm_no_other(temperature, device, watch):
    vocab = 130
    logits = torch.randn(8, vocab, generator=torch.Generator().manual_seed(0))
    logits[0, 129], logits[1, 64], logits[2, 3] = math.nan, math.inf, -math.inf
    logits[3] = -math.inf
    logits[4] = 3e38  # a sum of these is no number, the row is fine
    everything = torch.arange(vocab)
    bitmask = torch.full((8, 5), -1, dtype=torch.int32)
    bitmask[6] = 0
    params = drawing(
        8,
        temperature=torch.full((8,), temperature),
        top_p=torch.tensor([1, 1, 1, 1, 1, 0.9, 0.9, 0.9]),
        forbidden=SparseIds(torch.full((vocab,), 5), everything),
        bitmask=bitmask,
    )
    check(logits, params, device, **SMALL)
    out = sampled(logits, params, device, **SMALL)
    assert out.non_finite.tolist() == [True, True, True, True, False, True, True, False]
    assert out.token_ids[out.non_finite].sum() == 0


def test_a_logit_that_overflows_when_it_is_processed_is_not_finite(device):
    logits = torch.tensor([[3e38, 1.0], [3e38, 1.0]])
    params = SamplingTensors(
        temperature=torch.zeros(2),
        repetition=torch.tensor([0.5, 1.0]),
        output_counts=torch.ones(2, 2, dtype=torch.int32),
        prompt_mask=torch.zeros(2, 2, dtype=torch.bool),
    )
    check(logits, params, device)
    assert sampled(logits, params, device).non_finite.tolist() == [True, False]


def test_zeros_of_either_sign_are_equal(device):
    logits = torch.tensor([[-0.0, 0.0, -0.0, -1.0], [-1.0, 0.0, -0.0, 0.0]])
    check(logits, SamplingTensors(temperature=torch.zeros(2)), device)
    check(logits, drawing(2, top_k=torch.tensor([2, 1])), device)


def test_tiny_temperatures_and_huge_logits(device):
    logits = torch.tensor([[1e30, -1e30, 5.0], [0.1, 0.2, 0.3], [3e38, -3e38, 0.0]])
    params = drawing(3, temperature=torch.tensor([1e-40, 1e-40, 1.0]))
    check(logits, params, device)
    check(logits, dataclasses.replace(params, top_k=torch.tensor([2, 2, 2])), device)


def test_long_sparse_lists_of_few_rows(device, watch):
    """Forty entries of one tile among them, in an order that is no order."""
    logits = torch.randn(3, 200, generator=torch.Generator().manual_seed(8))
    order = torch.randperm(80, generator=torch.Generator().manual_seed(9))
    ids = torch.cat((torch.arange(40), torch.arange(100, 140)))[order]
    rows = torch.where(order < 40, 0, 2)
    params = drawing(
        3,
        temperature=torch.tensor([1.0, 1.0, 0.0]),
        bias=SparseBias(rows, ids, torch.randn(80, generator=torch.Generator().manual_seed(1)) * 9),
        forbidden=SparseIds(rows[::3], ids[::3]),
    )
    check(logits, params, device, **SMALL)
    assert watch.regions["heads"].tolist() == [[0, -1, -1, -1], [-1] * 4, [-1, 0, 0, -1]]


def test_entries_of_rows_outside_the_batch_are_padding(device):
    logits = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]])
    padding = torch.tensor([-1, 0, 2, 1, -1])
    params = SamplingTensors(
        temperature=torch.zeros(2),
        bias=SparseBias(padding, torch.tensor([0, 1, 0, 0, 2]), torch.full((5,), 9.0)),
        forbidden=SparseIds(torch.tensor([-1, 5]), torch.tensor([1, 0])),
    )
    assert sampled(logits, params, device).token_ids.tolist() == [1, 0]


def test_rows_that_lie_apart_in_every_table(device):
    logits, params = random_case(3, 70, rows=3, plain=False)
    tables = {"output_counts": 5, "prompt_mask": 3, "bitmask": 2}
    apart = {}
    for name, extra in tables.items():
        value = getattr(params, name)
        if value is not None:
            wide = torch.ones(3, value.shape[1] + extra, dtype=value.dtype)
            wide[:, : value.shape[1]] = value
            apart[name] = wide.to(device)[:, : value.shape[1]]
    wide = torch.full((3, 99), math.nan)
    wide[:, :70] = logits
    wanted = reference.sample(logits, params)
    got = sampling.sample(
        wide.to(device)[:, :70], dataclasses.replace(moved(params, device), **apart)
    )
    assert got.token_ids.tolist() == wanted.token_ids.tolist()
    assert got.non_finite.tolist() == wanted.non_finite.tolist()


def test_a_draw_without_a_key_is_answered_as_not_finite(device):
    logits = torch.tensor([[1.0, 2.0], [1.0, 2.0]])
    out = sampled(logits, SamplingTensors(temperature=torch.tensor([0.0, 1.0])), device)
    assert out.token_ids.tolist() == [1, 0]
    assert out.non_finite.tolist() == [False, True]
    with pytest.raises(ValueError, match=r"params.key is given without params.position"):
        sampled(logits, SamplingTensors(temperature=torch.ones(2), key=torch.zeros(2)), device)


def test_no_rows(device):
    out = sampled(torch.empty(0, 9), SamplingTensors(temperature=torch.empty(0)), device)
    assert out.token_ids.shape == out.non_finite.shape == (0,)


def test_a_row_pays_for_what_the_batch_asks(device, watch):
    logits, rows, vocab = torch.randn(2, 300), 2, 300
    sampled(logits, SamplingTensors(temperature=torch.zeros(rows)), device)
    assert set(watch.regions) == {"tile_best", "tile_id", "tile_score", "row_best"}
    asked = SamplingScratch(rows, vocab, changes=True, entries=3, truncates=True)
    assert asked.offsets()[1] == sampling_workspace_bytes(rows, vocab, entries=3)
    made = sampling.regions_of(asked, torch.device("cpu"))
    whole = made["tile_best"].untyped_storage().nbytes()
    assert whole == sampling_workspace_bytes(rows, vocab, entries=3)
    assert sampling_workspace_bytes(rows, vocab, changes=False) < whole - 4 * rows * vocab
    with pytest.raises(ValueError, match=rf"a GPU samples from 1 \.\. {MAX_VOCAB}"):
        sampling_workspace_bytes(1, MAX_VOCAB + 1)


def test_the_scratch_is_planned_without_torch():
    code = "import sys, kernels.footprint.gpu_sampling; sys.exit('torch' in sys.modules)"
    names = "import sys; sys.modules['torch'] = None; import kernels.footprint.gpu_sampling"
    for program in (code, names):
        subprocess.run([sys.executable, "-c", program], check=True)
