"""What lies past the vocabulary's end in its last tile never counts, however low all logits are.

Vocabularies that are no multiple of a tile, of a group, of a power of two of tiles; logits that are
all below zero, so that a zero read past the end would be the best; and no feature that would write
over it.
"""

from __future__ import annotations

import pytest
import torch

from kernels import SamplingTensors, SparseBias, reference
from kernels.footprint.gpu_sampling import MERGE_TOP
from kernels.gpu import logprobs
from tests.kernels.gpu import sampling_checks
from tests.kernels.gpu.sampling_checks import NUMBERS_OUT_OF_RANGE
from tests.kernels.sampling_cases import below_zero

pytestmark = NUMBERS_OUT_OF_RANGE

ROWS = 3
DEPTHS = torch.tensor([1.0, 40.0, 5.0])  # how far below zero a row's highest logit lies
HEATS = torch.tensor([3.0, 0.25, 1.0])  # at 40 and 0.25 a zero read past the end overflows
VOCAB = 83  # three tiles of 32, of which the last is cut within a group; rows of four are read
TILES = {"tile": 32, "group": 8}
ASKED: dict[str, dict[str, torch.Tensor]] = {
    "nothing": {},
    "top_k": {"top_k": torch.tensor([3, 5, 2])},
    "top_p": {"top_p": torch.tensor([0.5, 0.9, 0.99])},
    "min_p": {"min_p": torch.tensor([0.02, 0.3, 0.9])},
    "all": {
        "top_k": torch.tensor([5, 0, 4]),
        "top_p": torch.tensor([0.9, 0.8, 1.0]),
        "min_p": torch.tensor([0.0, 0.1, 0.01]),
    },
}


def negative_logits(vocab: int, depths: torch.Tensor = DEPTHS) -> torch.Tensor:
    """[ROWS, vocab]"""
    generator = torch.Generator().manual_seed(vocab)
    logits = below_zero(torch.randn(ROWS, vocab, generator=generator) * 2)
    return logits + 1 - depths[:, None]


def check(
    logits: torch.Tensor, params: SamplingTensors, device: torch.device, **sizes: int
) -> None:
    got = sampling_checks.check(logits, params, device, **(TILES | sizes))
    assert not got.non_finite.any()


def drawing(**asked: object) -> SamplingTensors:
    return sampling_checks.drawing(ROWS, temperature=HEATS, **asked)


@pytest.mark.parametrize("vocab", [7, VOCAB])
def test_greedy(vocab: int, device: torch.device) -> None:
    check(negative_logits(vocab), SamplingTensors(temperature=torch.zeros(ROWS)), device)


@pytest.mark.parametrize(
    ("asked", "vocab"), [("nothing", 7), ("nothing", 37), *((name, VOCAB) for name in ASKED)]
)
def test_draws(asked: str, vocab: int, device: torch.device) -> None:
    check(negative_logits(vocab), drawing(**ASKED[asked]), device, capacity=48)


@pytest.mark.parametrize("asked", ["top_k", "top_p"])
def test_truncated_draws_that_search_the_whole_row(asked: str, device: torch.device) -> None:
    """More equal tokens survive the bound than fit, so that the row itself is searched."""
    check(torch.full((ROWS, VOCAB), -9.0), drawing(**ASKED[asked]), device, capacity=4)


@pytest.mark.parametrize(("asked", "vocab"), [("nothing", 7), ("nothing", VOCAB), ("top_k", VOCAB)])
def test_draws_from_logits_that_a_bias_changed(
    asked: str, vocab: int, device: torch.device
) -> None:
    """The last tile of two rows is changed, holds the best token and is read back from scratch; the
    last row's is read as it came."""
    logits = negative_logits(vocab)
    rows, last = torch.tensor([0, 1]), torch.full((2,), vocab - 1)
    bias = SparseBias(rows, last, -0.5 - logits[rows, last])
    check(logits, drawing(bias=bias, **ASKED[asked]), device, capacity=48)


@pytest.mark.parametrize("num_top", [0, 3, MERGE_TOP + 1])
def test_log_probabilities_of_logits_far_below_zero(num_top: int, device: torch.device) -> None:
    """Relative to a zero read past the end every exponential would vanish."""
    logits = negative_logits(VOCAB, DEPTHS * 300)
    token_ids = torch.tensor([VOCAB - 1, 0, VOCAB // 2])
    ids, nats = logprobs.run(logits.to(device), token_ids.to(device), num_top, 32)
    wanted_ids, wanted = reference.token_logprobs(logits, token_ids, num_top)
    assert torch.equal(ids.cpu(), wanted_ids)
    torch.testing.assert_close(nats.cpu(), wanted, rtol=1e-6, atol=1e-5)
