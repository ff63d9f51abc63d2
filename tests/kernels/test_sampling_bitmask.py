"""A grammar's bitmask on a CPU: the reference's tokens, in bounded memory."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import kernels
from kernels import SamplingTensors, reference
from kernels.cpu import sampling as cpu_sampling
from tests.kernels.sampling_cases import random_bitmask, random_case, row_of


@pytest.mark.parametrize("vocab", [1, 2, 31, 32, 33, 64, 65, 300])
@pytest.mark.parametrize("seed", range(6))
def test_the_same_tokens_as_the_reference(vocab, seed):
    logits, params = random_case(1000 * vocab + seed, vocab)
    generator = torch.Generator().manual_seed(seed)
    bitmask = random_bitmask(logits.shape[0], vocab, generator)
    params = dataclasses.replace(params, bitmask=bitmask)
    before, mask_before = logits.clone(), bitmask.clone()
    got, wanted = kernels.sample(logits, params), reference.sample(logits, params)
    assert torch.equal(got.token_ids, wanted.token_ids)
    assert torch.equal(got.non_finite, wanted.non_finite)
    torch.testing.assert_close(logits, before, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(bitmask, mask_before)
    for row in range(logits.shape[0]):
        alone = kernels.sample(logits[row : row + 1], row_of(params, row))
        assert alone.token_ids[0] == got.token_ids[row]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("token", [0, 30, 31, 32, 62, 63, 64])
def test_a_single_allowed_token_is_chosen(temperature, token):
    """The sign bit of a word, its neighbours, and the last token of a vocabulary of 65."""
    bitmask = torch.zeros(1, 3, dtype=torch.int32)
    bit = token % 32
    bitmask[0, token // 32] = -(2**31) if bit == 31 else 1 << bit
    params = SamplingTensors(
        temperature=torch.tensor([temperature]),
        key=torch.tensor([5]),
        position=torch.tensor([0]),
        bitmask=bitmask,
    )
    output = kernels.sample(torch.randn(1, 65), params)
    assert output.token_ids.tolist() == [token]
    assert output.non_finite.tolist() == [False]


def test_spare_bits_allow_nothing():
    """Bits at and above the vocabulary's size are no tokens."""
    bitmask = torch.full((1, 1), -1 << 5, dtype=torch.int32)
    params = SamplingTensors(temperature=torch.zeros(1), bitmask=bitmask)
    output = kernels.sample(torch.zeros(1, 5), params)
    assert output.non_finite.tolist() == [True]
    assert output.token_ids.tolist() == [0]


def test_a_mask_that_denies_nothing_costs_no_copy():
    logits = torch.zeros(4, 70)
    bitmask = torch.full((4, 3), -1, dtype=torch.int32)
    bitmask[1, 2] = (1 << 6) - 1  # of the last word six bits are tokens
    bitmask[2, 2] = (1 << 5) - 1
    bitmask[3, 0] = -2
    params = SamplingTensors(temperature=torch.zeros(4), bitmask=bitmask)
    assert cpu_sampling.special_rows(logits, params).tolist() == [2, 3]


def test_bits_of_many_rows_are_spread_a_few_rows_at_a_time(monkeypatch):
    rows, vocab = 9, 100
    monkeypatch.setattr(cpu_sampling, "MASK_BYTES", 2 * 4 * 128)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, vocab, generator=generator)
    bitmask = random_bitmask(rows, vocab, generator)
    params = SamplingTensors(temperature=torch.zeros(rows), bitmask=bitmask)
    held = []

    class Watched(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if func.name().startswith("aten::__rshift__"):
                held.append(out.shape[0])
            return out

    with Watched():
        got = kernels.sample(logits, params)
    assert max(held) == 2
    assert torch.equal(got.token_ids, reference.sample(logits, params).token_ids)
