"""Random bits on a GPU are those of the specification, and noise is as near as promised."""

from __future__ import annotations

import math

import pytest
import torch
import triton
import triton.language as tl

from kernels import reference
from kernels.gpu.interpreter import interpreted
from kernels.jit import philox as jit
from kernels.jit.sampling import MARGIN
from kernels.philox import as_int64, derive_key, philox_4x32, sampling_bits


@triton.jit
def write_run(key, position, first, out, COUNT: tl.constexpr):
    words = jit.run_of_words(first, jit.stream_of(key, position), COUNT)
    tl.store(out + tl.arange(0, COUNT), words)


@triton.jit
def write_words(key, position, token_ids, out, COUNT: tl.constexpr):
    ids = tl.load(token_ids + tl.arange(0, COUNT))
    tl.store(out + tl.arange(0, COUNT), jit.words_of(ids, jit.stream_of(key, position)))


@triton.jit
def write_noise(bits, rough, exact, COUNT: tl.constexpr, INTERPRETED: tl.constexpr):
    at = tl.arange(0, COUNT)
    words = tl.load(bits + at)
    tl.store(rough + at, jit.rough_gumbel(words, INTERPRETED))
    tl.store(exact + at, jit.exact_gumbel(words))


def unsigned(words: torch.Tensor) -> list[int]:
    return [word & 0xFFFFFFFF for word in words.tolist()]


@pytest.mark.parametrize(
    ("key", "position"),
    [
        (0, 0),
        (2**64 - 1, 2**63 - 1),
        (0x299F31D0A4093822, 0x0370734413198A2E),
        (1 << 63, 1 << 32),
        (derive_key(3, 1), 17),
    ],
)
def test_every_word_is_that_of_the_specification(key, position, device):
    keys, positions = (torch.tensor([as_int64(value)], device=device) for value in (key, position))
    out = torch.full((64,), -1, dtype=torch.int32, device=device)
    first = 4096 * 37
    write_run[(1,)](keys, positions, first, out.view(torch.uint32), COUNT=64)
    assert unsigned(out) == [sampling_bits(key, position, first + i) for i in range(64)]
    ids = torch.tensor([0, 1, 2, 3, 151935, 151934, 151933, 8], dtype=torch.int32, device=device)
    write_words[(1,)](keys, positions, ids, out.view(torch.uint32), COUNT=8)
    assert unsigned(out[:8]) == [sampling_bits(key, position, token) for token in ids.tolist()]


def test_the_known_answer_of_random123(device):
    """Counter and key from the digits of pi; the domain is 0, which leaves this one: all zero."""
    zero = torch.zeros(1, dtype=torch.int64, device=device)
    out = torch.empty(4, dtype=torch.int32, device=device)
    write_run[(1,)](zero, zero, 0, out.view(torch.uint32), COUNT=4)
    assert unsigned(out) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert tuple(unsigned(out)) == philox_4x32((0, 0, 0, 0), (0, 0))


def test_noise_is_rough_within_a_tenth_of_the_margin_and_exact_to_the_bit(device):
    """Both ends, the middle, the edge of the series near 1, and random words between."""
    edges = [0, 1, 2, 3, 2**31 - 2, 2**31 - 1, 2**31, 2**31 + 1, 2**32 - 2, 2**32 - 1]
    series = int((1 - 0.0625) * 2**32)
    edges += [series - 1, series, series + 1, int(2**32 / math.e)]
    generator = torch.Generator().manual_seed(0)
    random = torch.randint(0, 2**32, (2048 - 256 - len(edges),), generator=generator)
    near_one = 2**32 - 1 - torch.logspace(0, 31, 256, base=2).long()
    bits = torch.cat((torch.tensor(edges), near_one, random))
    signed = torch.where(bits >= 2**31, bits - 2**32, bits).int().to(device)
    rough, exact = (torch.full((2048,), math.nan, device=device) for _ in range(2))
    write_noise[(1,)](
        signed.view(torch.uint32), rough, exact, COUNT=2048, INTERPRETED=interpreted()
    )
    wanted = torch.tensor([-math.log(-math.log((b + 0.5) / 2**32)) for b in bits.tolist()])
    assert torch.equal(exact.cpu(), wanted)
    error = (rough.cpu().double() - wanted.double()).abs()
    assert float(error.max()) < MARGIN.value / 10, bits[error.argmax()]


def test_noise_is_the_reference_s(device):
    key, position = derive_key(11, 0), 5
    bits = torch.tensor([sampling_bits(key, position, token) for token in range(16)])
    signed = torch.where(bits >= 2**31, bits - 2**32, bits).int().to(device)
    rough, exact = (torch.full((16,), math.nan, device=device) for _ in range(2))
    write_noise[(1,)](signed.view(torch.uint32), rough, exact, COUNT=16, INTERPRETED=interpreted())
    wanted = torch.tensor([reference.gumbel(key, position, token) for token in range(16)])
    assert torch.equal(exact.cpu(), wanted)
