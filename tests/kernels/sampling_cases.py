"""Random logits and sampling parameters: every feature somewhere in the batch, or none at all."""

from __future__ import annotations

import dataclasses
import math
import random

import torch

from kernels import SamplingTensors, SparseBias, SparseIds

Case = tuple[torch.Tensor, SamplingTensors]


def random_case(seed: int, vocab: int, rows: int | None = None, plain: bool | None = None) -> Case:
    """Logits [rows, vocab], often rounded so that many are equal, now and then not finite.

    One case in four, or as ``plain`` says, asks for no feature and has logits below zero alone:
    nothing then writes over what is read past the vocabulary's end, and a zero read there wins.
    """
    draw = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    rows = rows or draw.randint(1, 5)
    logits = torch.randn(rows, vocab, generator=generator) * draw.choice([0.3, 1, 3, 10])
    if seed % 3 == 0:
        logits = logits.bfloat16().float()  # as they come out of a 16-bit product
    if seed % 4 == 1:
        logits = (logits * 2).round() / 2
    if seed % 7 == 0:
        bad = draw.choice([math.nan, math.inf, -math.inf])
        logits[draw.randrange(rows), draw.randrange(vocab)] = bad

    if plain is None:  # not of draw, nor of seed's remainder: tests choose seeds in steps
        plain = random.Random(f"plain {seed}").random() < 0.25
    if plain:
        logits = below_zero(logits)

    def each(*choices: float) -> torch.Tensor:
        return torch.tensor([draw.choice(choices) for _ in range(rows)], dtype=torch.float32)

    def some(value: object) -> object:
        return value if draw.random() < 0.6 and not plain else None

    counts = torch.randint(0, 3, (rows, vocab), generator=generator, dtype=torch.int32)
    return logits, SamplingTensors(
        temperature=each(0, 0.5, 1, 1, 2),
        top_k=some(each(0, 0, 1, 3, 10, vocab // 2, vocab, vocab + 5).to(torch.int32)),
        top_p=some(each(1, 1, 0.3, 0.9, 0.99)),
        min_p=some(each(0, 0, 0.05, 0.5, 1)),
        presence=some(each(0, 0.5, -1)),
        frequency=some(each(0, 0, 0.3)),
        repetition=some(each(1, 1, 1.3, 0.8)),
        output_counts=counts,
        prompt_mask=torch.rand(rows, vocab, generator=generator) < 0.3,
        key=torch.randint(-(2**62), 2**62, (rows,), generator=generator),
        position=torch.randint(0, 2**40, (rows,), generator=generator),
        bias=some(_bias(draw, rows, vocab)),
        forbidden=some(_forbidden(draw, rows, vocab)),
        bitmask=some(random_bitmask(rows, vocab, generator)),
    )


def below_zero(logits: torch.Tensor) -> torch.Tensor:
    """The logits moved so that the highest finite one of each row is -1."""
    finite = torch.where(logits.isfinite(), logits, -math.inf)
    best = finite.amax(1, keepdim=True)
    return logits - torch.where(best.isfinite(), best, 0.0) - 1


def _cells(draw: random.Random, rows: int, vocab: int) -> tuple[torch.Tensor, torch.Tensor]:
    cells = draw.sample(range(rows * vocab), min(rows * vocab, draw.randint(0, 9)))
    place = torch.tensor(cells, dtype=torch.int64)
    return place // vocab, place % vocab


def _bias(draw: random.Random, rows: int, vocab: int) -> SparseBias:
    row_ids, ids = _cells(draw, rows, vocab)
    values = torch.tensor([draw.gauss(0, 5) for _ in row_ids], dtype=torch.float32)
    return SparseBias(row_ids, ids, values)


def _forbidden(draw: random.Random, rows: int, vocab: int) -> SparseIds:
    return SparseIds(*_cells(draw, rows, vocab))


def random_bitmask(rows: int, vocab: int, generator: torch.Generator) -> torch.Tensor:
    """[rows, ceil(vocab / 32)] int32; row 0 allows everything, with its spare bits clear."""
    words = -(-vocab // 32)
    bits = torch.randint(-(2**31), 2**31, (rows, words), generator=generator).int()
    bits |= torch.randint(-(2**31), 2**31, (rows, words), generator=generator).int()
    bits[0] = -1
    if vocab % 32:
        bits[:, -1] &= (1 << vocab % 32) - 1
    return bits


def row_of(params: SamplingTensors, row: int) -> SamplingTensors:
    """What one row was told, as a batch of one."""
    fields: dict[str, object] = {}
    for field in dataclasses.fields(params):
        value = getattr(params, field.name)
        if isinstance(value, torch.Tensor):
            fields[field.name] = value[row : row + 1]
        elif value is not None:
            mine = value.rows == row
            parts = [getattr(value, part.name)[mine] for part in dataclasses.fields(value)]
            fields[field.name] = type(value)(torch.zeros_like(parts[0]), *parts[1:])
    return SamplingTensors(**fields)  # type: ignore[arg-type]


def moved(params: SamplingTensors, device: torch.device) -> SamplingTensors:
    fields: dict[str, object] = {}
    for field in dataclasses.fields(params):
        value = getattr(params, field.name)
        if isinstance(value, torch.Tensor):
            value = value.to(device)
        elif value is not None:
            parts = (getattr(value, part.name) for part in dataclasses.fields(value))
            value = type(value)(*(part.to(device) for part in parts))
        fields[field.name] = value
    return SamplingTensors(**fields)  # type: ignore[arg-type]


def chi_square(observed: torch.Tensor, probabilities: torch.Tensor) -> float:
    expected = probabilities * observed.sum()
    return float(((observed - expected) ** 2 / expected).sum())
