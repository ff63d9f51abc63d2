"""The sampler: parity with the reference, its distribution, its order, and its independence."""

from __future__ import annotations

import math
import random

import pytest
import torch

import kernels
from kernels import SampleOutput, SamplingTensors, SparseBias, SparseIds, reference
from kernels.cpu import truncation
from tests.kernels.sampling_cases import chi_square, row_of


def draws(logits: torch.Tensor, count: int, **options: float) -> torch.Tensor:
    """How often each token comes in ``count`` draws from one row of logits [V]."""
    rows = logits.expand(count, -1).contiguous()
    parameters = {name: torch.full((count,), value) for name, value in options.items()}
    params = SamplingTensors(
        temperature=parameters.pop("temperature", torch.ones(count)),
        key=torch.full((count,), kernels.as_int64(kernels.derive_key(1234, 0))),
        position=torch.arange(count),
        **parameters,
    )
    return torch.bincount(kernels.sample(rows, params).token_ids, minlength=logits.shape[0])


def one(logits: list[float], **options: object) -> int:
    params = {"temperature": torch.zeros(1), **options}
    return int(kernels.sample(torch.tensor([logits]), SamplingTensors(**params)).token_ids)


def random_case(seed: int) -> tuple[torch.Tensor, SamplingTensors]:
    draw = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    rows, vocab = draw.randint(1, 6), draw.choice([5, 8, 37, 100, 1500])
    logits = torch.randn(rows, vocab, generator=generator) * draw.choice([0.3, 1, 3, 10])
    if seed % 3 == 0:
        logits = (logits * 2).round() / 2  # many equal values
    if seed % 7 == 0:
        logits[draw.randrange(rows), draw.randrange(vocab)] = draw.choice(
            [math.nan, math.inf, -math.inf]
        )

    def each(choices: list[float]) -> torch.Tensor:
        return torch.tensor([draw.choice(choices) for _ in range(rows)], dtype=torch.float32)

    cells = draw.sample(range(rows * vocab), draw.randint(0, 5))
    row_ids = torch.tensor([cell // vocab for cell in cells], dtype=torch.int64)
    token_ids = torch.tensor([cell % vocab for cell in cells], dtype=torch.int64)
    counts = torch.randint(0, 3, (rows, vocab), generator=generator, dtype=torch.int32)
    return logits, SamplingTensors(
        temperature=each([0, 0.5, 1, 1, 2]),
        top_k=each([0, 0, 1, 3, 10, vocab, vocab + 5, 1200]).long(),
        top_p=each([1, 1, 0.3, 0.9, 0.99]),
        min_p=each([0, 0, 0.05, 0.5, 1]),
        presence=each([0, 0.5, -1]),
        frequency=each([0, 0, 0.3]),
        repetition=each([1, 1, 1.3, 0.8]),
        output_counts=counts,
        prompt_mask=torch.rand(rows, vocab, generator=generator) < 0.3,
        key=torch.randint(-(2**62), 2**62, (rows,), generator=generator),
        position=torch.randint(0, 2**40, (rows,), generator=generator),
        bias=SparseBias(row_ids, token_ids, torch.randn(len(cells), generator=generator) * 5),
        forbidden=SparseIds(row_ids[:2], token_ids[:2]),
    )


@pytest.mark.parametrize("seed", range(80))
def test_the_same_tokens_as_the_reference(seed):
    logits, params = random_case(seed)
    before = logits.clone()
    got, wanted = kernels.sample(logits, params), reference.sample(logits, params)
    assert torch.equal(got.token_ids, wanted.token_ids)
    assert torch.equal(got.non_finite, wanted.non_finite)
    torch.testing.assert_close(logits, before, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("seed", range(0, 80, 4))
def test_a_row_alone_and_among_neighbours_is_the_same_token(seed):
    logits, params = random_case(seed)
    together = kernels.sample(logits, params)
    for row in range(logits.shape[0]):
        alone = kernels.sample(logits[row : row + 1], row_of(params, row))
        assert alone.token_ids[0] == together.token_ids[row]
        assert alone.non_finite[0] == together.non_finite[row]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax(temperature):
    logits = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, 1.5, 0.2, -0.5, 0.9])
    observed = draws(logits, 20_000, temperature=temperature)
    # Eight degrees of freedom: 26.1 is exceeded once in a thousand seeds, and the seed is fixed.
    assert chi_square(observed, (logits / temperature).softmax(0)) < 26.1


def test_draws_of_different_keys_and_positions_are_unrelated():
    """Pairs of neighbouring positions, and of two choices of one seed, fill a table evenly."""
    count, vocab = 20_000, 4
    logits = torch.zeros(2 * count, vocab)
    keys = [kernels.as_int64(kernels.derive_key(7, choice)) for choice in (0, 1)]
    params = SamplingTensors(
        temperature=torch.ones(2 * count),
        key=torch.tensor(keys).repeat_interleave(count),
        position=torch.arange(count).repeat(2),
    )
    first, second = kernels.sample(logits, params).token_ids.chunk(2)
    for a, b in ((first[:-1], first[1:]), (first, second)):
        table = torch.bincount(a * vocab + b, minlength=vocab * vocab)
        assert chi_square(table, torch.full((16,), 1 / 16)) < 37.7  # 15 degrees, one in a thousand


def test_truncated_draws_follow_the_renormalised_softmax():
    logits = torch.tensor([3.0, 2.5, 2.0, 1.0, 0.0, -1.0])
    kept = logits[:3].softmax(0)
    for options in ({"top_k": 3}, {"top_p": 0.85}, {"min_p": 0.3}):
        observed = draws(logits, 20_000, **options)
        assert observed[3:].sum() == 0, options
        assert chi_square(observed[:3], kept) < 13.9, options  # 2 degrees, one in a thousand


@pytest.mark.parametrize("rank", [1, 2, 5, 1023, 1024, 1025, 3000])
def test_top_p_keeps_the_smallest_prefix_on_both_sides_of_the_partial_selection(rank):
    """A mass just below that of the first ``rank`` tokens keeps exactly these."""
    torch.manual_seed(rank)
    scaled = torch.randn(1, 4000) * 0.5
    scaled -= scaled.max()
    ordered = scaled.double().softmax(1).sort(descending=True).values.cumsum(1)[0]
    below = float(ordered[rank - 2]) if rank > 1 else 0.0
    top_p = torch.tensor([(below + float(ordered[rank - 1])) / 2])
    kept = scaled.clone()
    truncation.keep_best(kept, torch.tensor([0]), top_p)
    assert int(kept.isfinite().sum()) == rank
    assert kept.isfinite()[0, scaled.topk(rank).indices[0]].all()


@pytest.mark.parametrize("k", [1, 2, 3, 7, 1023, 1025])
def test_top_k_keeps_exactly_k_and_the_low_ids_of_equals(k):
    scaled = torch.full((2, 2000), -1.0)
    scaled[1, 1500:] = 0.0
    truncation.keep_best(scaled, torch.tensor([k, k]), torch.ones(2))
    first = list(range(k))
    second = sorted([*range(1500, min(2000, 1500 + k)), *range(max(0, k - 500))])
    assert scaled[0].isfinite().nonzero().view(-1).tolist() == first
    assert scaled[1].isfinite().nonzero().view(-1).tolist() == second


def test_top_p_is_of_the_mass_that_top_k_leaves():
    """Of .4 .3 .2 .1 the best two leave .7, of which .55 is .385: the first alone. A neighbour
    that keeps three does not add to the mass."""
    scaled = torch.tensor([[0.4, 0.3, 0.2, 0.1]] * 2).div(0.4).log()
    truncation.keep_best(scaled, torch.tensor([2, 3]), torch.tensor([0.55, 0.55]))
    assert scaled.isfinite().sum(1).tolist() == [1, 2]


@pytest.mark.parametrize("top_k", [0, 1500])
@pytest.mark.parametrize(("top_p", "share"), [(0.25, 4), (0.5, 2), (0.75, 4 / 3)])
@pytest.mark.parametrize("vocab", [4, 1024, 2048])
def test_a_mass_that_is_reached_exactly_needs_no_further_token(vocab, top_p, share, top_k):
    """Equal logits, whose mass is their number: whole sums, without rounding."""
    count = min(top_k, vocab) if top_k else vocab
    scaled = torch.zeros(1, vocab)
    truncation.keep_best(scaled, torch.tensor([top_k]), torch.tensor([top_p]))
    assert scaled.isfinite()[0].nonzero().view(-1).tolist() == list(range(round(count / share)))
    if vocab == 4:
        assert reference._kept(torch.zeros(4), 0, top_p, 0.0) == list(range(round(4 / share)))


def test_min_p_comes_before_top_p():
    """Probabilities .5 .3 .1 .1: min_p .5 leaves .5 .3, of which .6 is the first alone (.625)."""
    logits = torch.tensor([0.5, 0.3, 0.1, 0.1]).log()
    observed = draws(logits, 500, min_p=0.5, top_p=0.6)
    assert observed.tolist() == [500, 0, 0, 0]


def test_greedy_takes_the_lowest_id_of_equals():
    assert one([1.0, 3.0, 3.0, 2.0]) == 1


def test_a_top_k_of_one_is_greedy_at_any_temperature():
    torch.manual_seed(0)
    logits = torch.randn(64, 50)
    params = SamplingTensors(
        temperature=torch.full((64,), 2.0),
        top_k=torch.ones(64, dtype=torch.int32),
        key=torch.arange(64),
        position=torch.arange(64),
    )
    assert torch.equal(kernels.sample(logits, params).token_ids, logits.argmax(1))


def test_a_tiny_temperature_is_greedy_and_never_overflows():
    logits = torch.tensor([[1e30, -1e30, 5.0], [0.1, 0.2, 0.3]])
    params = SamplingTensors(
        temperature=torch.full((2,), 1e-40), key=torch.arange(2), position=torch.arange(2)
    )
    output = kernels.sample(logits, params)
    assert output.token_ids.tolist() == [0, 2]
    assert not output.non_finite.any()


def counts_of(*token_ids: int, vocab: int = 4) -> torch.Tensor:
    return torch.bincount(torch.tensor(token_ids, dtype=torch.int64), minlength=vocab).int()[None]


def test_penalties_one_by_one():
    none = torch.zeros(1, 4, dtype=torch.bool)
    prompt = torch.tensor([[True, False, False, False]])
    half, double = torch.tensor([0.5]), torch.tensor([2.0])
    # Presence counts once however often a token came, frequency every time.
    assert one([1.0, 0.6, 0.4, 0.0], presence=half, output_counts=counts_of(0, 0, 0)) == 1
    assert one([1.3, 0.6, 0.4, 0.0], presence=half, output_counts=counts_of(0, 0, 0)) == 0
    assert one([1.3, 0.6, 0.4, 0.0], frequency=half, output_counts=counts_of(0, 0)) == 1
    # Repetition divides a positive and multiplies a negative logit, of the prompt's tokens too.
    common = {"repetition": double, "output_counts": counts_of()}
    assert one([1.0, 0.6, 0.4, 0.0], prompt_mask=prompt, **common) == 1
    assert one([1.0, 0.6, 0.4, 0.0], prompt_mask=none, **common) == 0
    assert one([-1.0, -1.5, -3.0, -3.0], prompt_mask=prompt, **common) == 1
    # Presence and frequency leave the prompt's tokens alone.
    alone = {"presence": double, "output_counts": counts_of(), "prompt_mask": prompt}
    assert one([1.0, 0.6, 0.4, 0.0], **alone) == 0


def test_bias_comes_after_penalties_and_forbidding_last():
    zero = torch.zeros(1, dtype=torch.int64)
    bias = SparseBias(zero, zero, torch.tensor([1.0]))
    # (2 / 2) + 1 = 2 beats 1.6; had the bias come first, (2 + 1) / 2 = 1.5 would not.
    assert (
        one(
            [2.0, 1.6, 0.0, 0.0],
            repetition=torch.tensor([2.0]),
            output_counts=counts_of(0),
            prompt_mask=torch.zeros(1, 4, dtype=torch.bool),
            bias=bias,
        )
        == 0
    )
    assert one([2.0, 1.6, 0.0, 0.0], bias=bias, forbidden=SparseIds(zero, zero)) == 1


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_that_are_not_finite_are_flagged_and_harm_no_other(temperature):
    logits = torch.tensor(
        [[1.0, 2.0], [math.nan, 2.0], [math.inf, 2.0], [-math.inf, 2.0], [3e38, 3e38], [0.0, 9e9]]
    )
    everything = SparseIds(torch.tensor([0, 0]), torch.tensor([0, 1]))
    params = SamplingTensors(
        temperature=torch.full((6,), temperature),
        key=torch.arange(6),
        position=torch.arange(6),
        forbidden=everything,
    )
    output = kernels.sample(logits, params)
    assert output.non_finite.tolist() == [True, True, True, True, False, False]
    assert output.token_ids[:4].tolist() == [0, 0, 0, 0]
    assert output.token_ids[5] == 1


def test_no_rows():
    output = kernels.sample(torch.empty(0, 9), SamplingTensors(temperature=torch.empty(0)))
    assert isinstance(output, SampleOutput)
    assert output.token_ids.shape == output.non_finite.shape == (0,)


def test_an_id_never_lies_outside_a_vocabulary_that_is_no_multiple_of_four():
    for vocab in (1, 2, 3, 5, 6, 7):
        assert draws(torch.zeros(vocab), 300).shape[0] == vocab


@pytest.mark.parametrize("num_top", [0, 1, 5, 20])
def test_log_probabilities(num_top):
    torch.manual_seed(num_top)
    for logits in (torch.randn(4, 50) * 5, torch.randn(4, 50).round(), torch.zeros(3, 50)):
        token_ids = torch.randint(0, 50, (logits.shape[0],))
        ids, logprobs = kernels.token_logprobs(logits, token_ids, num_top)
        wanted_ids, wanted = reference.token_logprobs(logits, token_ids, num_top)
        assert ids.dtype is torch.int32
        assert torch.equal(ids, wanted_ids)
        torch.testing.assert_close(logprobs, wanted, rtol=0, atol=1e-6)


def test_log_probabilities_of_many_rows_are_those_of_each(monkeypatch):
    """Rows are taken in parts, so that no second copy of all logits is held."""
    monkeypatch.setattr("kernels.cpu.sampling.LOGPROB_BYTES", 3 * 4 * 50)
    torch.manual_seed(0)
    logits, token_ids = torch.randn(10, 50), torch.randint(0, 50, (10,))
    ids, logprobs = kernels.token_logprobs(logits, token_ids, 2)
    wanted_ids, wanted = reference.token_logprobs(logits, token_ids, 2)
    assert torch.equal(ids, wanted_ids)
    torch.testing.assert_close(logprobs, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": torch.ones(3)}, r"params.temperature has shape \[3\]; it must be \[2\]"),
        ({"top_k": torch.ones(2)}, "params.top_k is float32; it must be one of int32, int64"),
        ({"presence": torch.ones(2)}, "params.presence is given without params.output_counts"),
        ({"output_counts": torch.zeros(2, 5, dtype=torch.int32)}, "params.output_counts has shape"),
        ({"temperature": torch.ones(2)}, "give params.key and position"),
    ],
)
def test_wrong_parameters_are_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        kernels.sample(
            torch.zeros(2, 4), SamplingTensors(**{"temperature": torch.zeros(2), **change})
        )


def test_wrong_logits_are_refused_by_name():
    with pytest.raises(ValueError, match="logits is float16; it must be one of float32"):
        kernels.sample(torch.zeros(2, 4).half(), SamplingTensors(temperature=torch.zeros(2)))
    with pytest.raises(ValueError, match=r"num_top is 5; it must be in 0 \.\. 4"):
        kernels.token_logprobs(torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64), 5)
