"""Tokens chosen natively against the reference, to the token."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

import kernels
from kernels import SampleOutput, SamplingTensors, SparseIds, reference
from kernels.backends import NATIVE_CPU
from kernels.cpu.native import sampling as native
from kernels.dispatch import using
from tests.kernels.native.native_steps import threads
from tests.kernels.sampling_cases import below_zero, random_case

pytestmark = pytest.mark.usefixtures("native_level")

VOCABULARIES = [1, 3, 4, 5, 31, 32, 33, 100, 1003]


def sampled(logits: torch.Tensor, params: SamplingTensors) -> SampleOutput:
    with using(NATIVE_CPU):
        return kernels.sample(logits, params)


def bare(params: SamplingTensors) -> SamplingTensors:
    """Temperature, key and position alone: what is chosen natively."""
    return SamplingTensors(params.temperature, key=params.key, position=params.position)


def assert_same(got: SampleOutput, wanted: SampleOutput) -> None:
    assert got.token_ids.tolist() == wanted.token_ids.tolist()
    assert got.non_finite.tolist() == wanted.non_finite.tolist()


@pytest.mark.parametrize("vocab", VOCABULARIES)
def test_rows_of_a_temperature_alone(vocab: int) -> None:
    for seed in range(30):
        logits, params = random_case(seed, vocab)
        assert_same(sampled(logits, bare(params)), reference.sample(logits, bare(params)))


def test_rows_that_ask_for_more() -> None:
    for seed in range(12):
        logits, params = random_case(seed, 100)
        assert_same(sampled(logits, params), reference.sample(logits, params))


@pytest.mark.parametrize("vocab", [7, 64, 515, 5003])
@pytest.mark.parametrize(
    "cut",
    [
        {"top_k": 1},
        {"top_k": 5},
        {"top_k": 40},
        {"top_p": 0.0},
        {"top_p": 0.5},
        {"top_p": 0.9},
        {"top_p": 0.999},
        {"min_p": 0.3},
        {"top_k": 6, "top_p": 0.7},
        {"top_p": 0.9, "min_p": 0.05},
        {"top_k": 30, "top_p": 0.95, "min_p": 0.01},
    ],
    ids=str,
)
def test_draws_from_the_best_tokens_alone(cut: dict[str, float], vocab: int) -> None:
    """Often enough that each token that is kept is drawn, and none that is not; with many equals,
    some of which are cut off."""
    rows = 400
    torch.manual_seed(vocab)
    one = torch.randn(vocab) * 2
    logits = torch.stack((one, (one * 2).round() / 2)).repeat(rows // 2, 1)
    params = SamplingTensors(
        torch.full((rows,), 3.0),
        top_k=torch.full((rows,), int(cut.get("top_k", 0))),
        top_p=torch.full((rows,), cut.get("top_p", 1.0)),
        min_p=torch.full((rows,), cut.get("min_p", 0.0)),
        key=torch.arange(rows),
        position=torch.arange(rows) * 3,
    )
    assert_same(sampled(logits, params), kernels.sample(logits, params))


def test_a_row_that_is_no_number_where_a_token_is_forbidden() -> None:
    """What forbids the token does not hide it."""
    logits = torch.zeros(3, 40)
    logits[1, 7] = math.nan
    forbidden = SparseIds(torch.tensor([0, 1, 2]), torch.tensor([7, 7, 7]))
    got = sampled(logits, SamplingTensors(torch.zeros(3), forbidden=forbidden))
    assert got.non_finite.tolist() == [False, True, False]
    everything = SparseIds(torch.full((40,), 2), torch.arange(40))
    got = sampled(logits, SamplingTensors(torch.zeros(3), forbidden=everything))
    assert got.non_finite.tolist() == [False, True, True]


@pytest.mark.parametrize("scale", [0.0, 0.01, 1.0, 30.0])
def test_a_large_vocabulary_is_drawn_from_to_the_token(
    scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flat and steep, so that much and little is passed over; on one thread and on several."""
    monkeypatch.setattr(native, "ALONE", 0)
    torch.manual_seed(1)
    rows, vocab = 6, 20_003
    logits = torch.randn(rows, vocab) * scale
    params = SamplingTensors(
        torch.tensor([1.0, 0.1, 3.0, 0.0, 1.0, 50.0]),
        key=torch.arange(rows) * 7919 - 3,
        position=torch.arange(rows) << 31,
    )
    wanted = kernels.sample(logits, params)
    for count in (1, 2, 3):
        with threads(count):
            assert_same(sampled(logits, params), wanted)
    row = replace(params, temperature=params.temperature[4:5], key=params.key[4:5])
    row = replace(row, position=params.position[4:5])
    assert sampled(logits[4:5], row).token_ids.tolist() == wanted.token_ids[4:5].tolist()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("vocab", [1, 7, 64, 515])
def test_a_logit_that_is_no_number_is_found_wherever_it_is(vocab: int, bad: float) -> None:
    logits = torch.randn(vocab, vocab)
    logits.fill_diagonal_(bad)
    for temperature in (0.0, 1.0):
        params = SamplingTensors(
            torch.full((vocab,), temperature),
            key=torch.arange(vocab),
            position=torch.arange(vocab),
        )
        got = sampled(logits, params)
        assert got.non_finite.all()
        assert not got.token_ids.any()


def test_sums_that_overflow_are_numbers_all_the_same() -> None:
    logits = torch.full((1, 64), 3e38)
    assert sampled(logits, SamplingTensors(torch.zeros(1))).non_finite.tolist() == [False]


def test_of_equals_the_lowest_token_is_chosen() -> None:
    logits = below_zero(torch.zeros(2, 70))
    logits[0, 40:] = logits[1, 69:] = 5.0
    got = sampled(logits, SamplingTensors(torch.zeros(2)))
    assert got.token_ids.tolist() == [40, 69]


def test_a_draw_without_a_key_is_refused() -> None:
    with pytest.raises(ValueError, match=r"give params\.key and position"):
        sampled(torch.zeros(1, 4), SamplingTensors(torch.ones(1)))
