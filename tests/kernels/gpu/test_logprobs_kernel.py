"""Log-probabilities on a GPU: exact ids, values within 1e-5, whatever the vocabulary's size."""

from __future__ import annotations

import math

import pytest
import torch

from kernels import reference
from kernels.footprint.gpu_sampling import MERGE_TOP, TILE, logprob_workspace_bytes
from kernels.gpu import logprobs as launcher
from kernels.gpu.sampling import token_logprobs
from tests.kernels.gpu.sampling_checks import NUMBERS_OUT_OF_RANGE

pytestmark = NUMBERS_OUT_OF_RANGE


def check(logits: torch.Tensor, num_top: int, device: torch.device, tile: int) -> None:
    rows, vocab = logits.shape
    token_ids = torch.randint(0, vocab, (rows,), generator=torch.Generator().manual_seed(vocab))
    ids, logprobs = launcher.run(logits.to(device), token_ids.to(device), num_top, tile)
    wanted_ids, wanted = reference.token_logprobs(logits, token_ids, num_top)
    assert ids.dtype is torch.int32
    assert torch.equal(ids.cpu(), wanted_ids)
    torch.testing.assert_close(logprobs.cpu(), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("vocab", [1, 2, 31, 33, 63, 64, 65, 129, 300])
def test_the_reference_s_ids_and_values(vocab, device):
    generator = torch.Generator().manual_seed(vocab)
    logits = torch.randn(3, vocab, generator=generator) * 5
    logits[1] = logits[1].round()
    logits[2] = 0
    for num_top in {0, min(vocab, 20)}:
        check(logits, num_top, device, tile=64)


@pytest.mark.parametrize("num_top", [MERGE_TOP, MERGE_TOP + 1, 40])
def test_many_alternatives_and_the_general_path(num_top, device):
    generator = torch.Generator().manual_seed(num_top)
    logits = (torch.randn(2, 40, generator=generator) * 3).round()
    check(logits, num_top, device, tile=32)


@pytest.mark.parametrize("vocab", [TILE - 1, TILE, TILE + 1, 2 * TILE + 384])
def test_vocabularies_about_a_shipped_tile(vocab, device):
    logits = torch.randn(2, vocab, generator=torch.Generator().manual_seed(vocab)) * 4
    logits[1] = logits[1].bfloat16().float()
    check(logits, 20, device, tile=TILE)


def test_tokens_that_are_impossible_rank_last_by_id(device):
    """Minus infinity, also over whole tiles."""
    logits = torch.full((2, 80), -math.inf)
    logits[0, 70], logits[0, 3] = 1.0, 0.0
    logits[1, 79] = -5.0
    for num_top in (5, MERGE_TOP + 1):
        check(logits, num_top, device, tile=32)


@pytest.mark.parametrize("num_top", [4, MERGE_TOP + 1])
def test_ids_are_tokens_even_where_values_are_no_numbers(num_top, device):
    logits = torch.randn(4, 70)
    logits[0, 5] = math.nan
    logits[1] = math.nan
    logits[2] = -math.inf
    logits[3, 1] = math.inf
    ids, _ = launcher.run(logits.to(device), torch.zeros(4).long().to(device), num_top, 32)
    assert bool(((ids >= 0) & (ids < 70)).all())
    assert all(len(set(row[1:])) == num_top for row in ids.tolist())


def test_a_row_is_the_same_bits_alone_and_among_others(device):
    logits = torch.randn(3, 300, generator=torch.Generator().manual_seed(1)).to(device)
    token_ids = torch.arange(3, device=device, dtype=torch.int32)
    ids, logprobs = launcher.run(logits, token_ids, 4, 64)
    for row in range(3):
        part = slice(row, row + 1)
        alone_ids, alone = launcher.run(logits[part], token_ids[part], 4, 64)
        assert torch.equal(alone_ids, ids[part])
        assert torch.equal(alone, logprobs[part])


def test_rows_that_lie_apart_and_no_rows(device):
    held = torch.full((3, 90), math.nan)
    held[:, :70] = torch.randn(3, 70)
    logits = held[:, :70]
    token_ids = torch.tensor([69, 0, 1])
    ids, logprobs = token_logprobs(held.to(device)[:, :70], token_ids.to(device), 3)
    wanted_ids, wanted = reference.token_logprobs(logits, token_ids, 3)
    assert torch.equal(ids.cpu(), wanted_ids)
    torch.testing.assert_close(logprobs.cpu(), wanted, rtol=0, atol=1e-5)
    nothing = token_logprobs(held[:0, :70].to(device), token_ids[:0].to(device), 3)
    assert nothing[0].shape == nothing[1].shape == (0, 4)


@pytest.mark.parametrize("num_top", [0, 20, MERGE_TOP + 1])
def test_the_booked_bytes_are_those_allocated(num_top, device, monkeypatch):
    allocated = []
    empty = torch.empty

    def watched(*size, **options):
        if options.get("dtype") is torch.uint8:
            allocated.append(size[0])
        return empty(*size, **options)

    monkeypatch.setattr(torch, "empty", watched)
    token_logprobs(torch.zeros(2, 70, device=device), torch.zeros(2).long().to(device), num_top)
    assert allocated == [logprob_workspace_bytes(2, 70, num_top)]
