"""Every combination of sampling numbers at the edges of their ranges leaves a row finite.

The ranges are the engine's own (server.engine.request): one that is widened is tested here
as wide as it became. The logits go to +-1e36, up to which the ranges promise it.
"""

from __future__ import annotations

import itertools

import pytest
import torch

import kernels
from kernels import SamplingTensors, SparseBias, reference
from server.engine.request import LOGIT_BIAS, SAMPLING_RANGES

VOCAB = 23
MOST_TOKENS = 1 << 24  # of one id in an answer: the longest context that an option takes
TINY = 1e-45  # the least number that float32 holds: nearer to 0 there is only 0


def edges(name: str, *between: float) -> tuple[float, ...]:
    low, high, above_low = SAMPLING_RANGES[name]
    return (TINY if above_low else low, *between, high)


COMBINATIONS = list(
    itertools.product(
        edges("temperature", TINY, 1e-10),
        edges("top_p"),
        edges("min_p", TINY),
        edges("presence_penalty"),
        edges("frequency_penalty"),
        edges("repetition_penalty"),
        (0, 1),  # top_k
    )
)


def logits_of(scale: float) -> torch.Tensor:
    """A row for each combination: of both signs, the largest at either end, and a zero."""
    rows = len(COMBINATIONS)
    row = torch.linspace(-scale, scale, VOCAB)
    row[VOCAB // 2] = 0.0
    return torch.stack([row.roll(shift) for shift in range(rows)])


def parameters() -> SamplingTensors:
    columns = [
        torch.tensor(column, dtype=torch.float32) for column in zip(*COMBINATIONS, strict=True)
    ]
    temperature, top_p, min_p, presence, frequency, repetition, top_k = columns
    rows = len(COMBINATIONS)
    generator = torch.Generator().manual_seed(3)
    counts = torch.randint(0, 2, (rows, VOCAB), generator=generator, dtype=torch.int32)
    ids = torch.arange(rows) % VOCAB
    other = (ids + 7) % VOCAB
    least = torch.full((rows,), float(LOGIT_BIAS.low))
    most = torch.full((rows,), float(LOGIT_BIAS.high))
    return SamplingTensors(
        temperature=temperature,
        top_k=top_k.to(torch.int32),
        top_p=top_p,
        min_p=min_p,
        presence=presence,
        frequency=frequency,
        repetition=repetition,
        output_counts=counts * MOST_TOKENS,
        prompt_mask=torch.rand(rows, VOCAB, generator=generator) < 0.5,
        key=torch.arange(rows),
        position=torch.arange(rows),
        bias=SparseBias(
            torch.arange(rows).repeat(2), torch.cat((ids, other)), torch.cat((least, most))
        ),
    )


@pytest.mark.parametrize("scale", [0.0, 1e-40, 1.0, 30.0, 1e4, 1e36])
def test_the_sampler_stays_finite_at_every_edge(scale: float) -> None:
    logits, params = logits_of(scale), parameters()
    assert len(COMBINATIONS) >= 384
    chosen = kernels.sample(logits, params)
    assert not chosen.non_finite.any()
    assert ((chosen.token_ids >= 0) & (chosen.token_ids < VOCAB)).all()
    expected = reference.sample(logits, params)
    assert not expected.non_finite.any()
    assert torch.equal(chosen.token_ids, expected.token_ids)


def test_what_the_ranges_leave_out_was_left_out_for_a_reason() -> None:
    logits = torch.tensor([[4.0, 3.0, -2.0]])
    params = SamplingTensors(
        temperature=torch.zeros(1),
        repetition=torch.tensor([1e-38]),
        output_counts=torch.ones(1, 3, dtype=torch.int32),
        prompt_mask=torch.zeros(1, 3, dtype=torch.bool),
    )
    assert kernels.sample(logits, params).non_finite.all()
    assert reference.sample(logits, params).non_finite.all()
