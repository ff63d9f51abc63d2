"""What top_k, top_p and min_p cut off on a GPU: to the token what the reference cuts off."""

from __future__ import annotations

import math

import pytest
import torch

from kernels import SamplingTensors, reference
from tests.kernels.gpu.sampling_checks import NUMBERS_OUT_OF_RANGE, SMALL, check, drawing, sampled

pytestmark = NUMBERS_OUT_OF_RANGE


def test_survivors_are_searched_apart_and_what_does_not_fit_is_searched_whole(device, watch):
    """Row by row: few survive, too many survive, no bound, and the bound of min_p alone."""
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(4, 300, generator=generator)
    logits[0] *= 6
    logits[3] *= 6
    params = drawing(
        4,
        top_k=torch.tensor([5, 36, 0, 0]),
        top_p=torch.tensor([0.9, 1.0, 0.99, 1.0]),
        min_p=torch.tensor([0.0, 0.0, 0.0, 0.1]),
    )
    check(logits, params, device, **SMALL)
    counts = watch.regions["survivor_counts"].tolist()
    assert 5 <= counts[0] <= 48
    assert 48 < counts[1] < 300
    assert counts[2] == 2**31 - 1
    assert 1 <= counts[3] <= 48


def test_a_bound_of_top_p_lets_few_survive_and_keeps_the_whole_mass(device, watch):
    logits = torch.randn(4, 500, generator=torch.Generator().manual_seed(5)) * 8
    logits[2] = logits[2].bfloat16().float()
    params = drawing(
        4, top_p=torch.tensor([0.5, 0.9, 0.95, 0.8]), min_p=torch.tensor([0, 0, 0.01, 0])
    )
    check(logits, params, device, **SMALL)
    assert max(watch.regions["survivor_counts"].tolist()) <= 48
    kept = (logits - logits.amax(1, keepdim=True)).exp().double()
    kept[2][kept[2] < 0.01] = 0
    total = watch.regions["totals"].cpu().double() / 2**42
    torch.testing.assert_close(total, kept.sum(1), rtol=1e-5, atol=0)


FEW_OF_MANY = {"top_k": torch.tensor([75] * 4), "top_p": torch.tensor([0.2, 0.5, 0.7, 0.9])}


@pytest.mark.parametrize(
    ("options", "capacity"),
    [
        ({"top_k": torch.tensor([3, 17, 50, 99])}, 8),
        ({"top_p": torch.tensor([0.1, 0.5, 0.77, 0.999])}, 8),
        (FEW_OF_MANY, 8),
        (FEW_OF_MANY, 128),
    ],
)
def test_of_equal_logits_the_low_ids_are_kept(options, capacity, device):
    """Rows of one value, of two, and of few: what is cut off is cut off by id."""
    logits = torch.zeros(4, 100)
    logits[1, 50:] = 1
    logits[2] = torch.arange(100) % 3
    logits[3, ::2] = -30  # its mass is next to nothing
    # Hot, so that the last tokens that are kept come as often as the first.
    params = drawing(4, temperature=torch.full((4,), 3.0), **options)
    check(logits, params, device, **(SMALL | {"capacity": capacity}))


def winner_of(logits: torch.Tensor, params: SamplingTensors) -> int:
    return int(reference.sample(logits, params).token_ids[0])


@pytest.mark.parametrize("capacity", [8, 128])
@pytest.mark.parametrize("kind", ["random", "equal", "rounded"])
def test_a_cut_is_exact_to_the_token(kind, capacity, device):
    """The token that wins among all is the last that is kept, and then the first that is not."""
    logits = torch.randn(1, 100, generator=torch.Generator().manual_seed(1)) * 0.7
    if kind == "rounded":
        logits = logits.round()
    hot = drawing(1, position=torch.tensor([11]))
    if kind == "equal":  # those after the winner are no longer equal
        logits[:] = 0
        logits[0, winner_of(logits, hot) + 1 :] = -30
    winner = winner_of(logits, hot)
    scaled = (logits - logits.max())[0]
    order = sorted(range(100), key=lambda token: (-float(scaled[token]), token))
    rank = order.index(winner)
    assert rank > 1
    weights = scaled[order].double().exp()
    below, above = (float(weights[:count].sum() / weights.sum()) for count in (rank, rank + 1))
    value = float(scaled[winner])
    least = scaled[winner].exp()
    while math.log(least) > value:
        least = least.nextafter(torch.tensor(0.0))
    most = least
    while math.log(most) <= value:
        most = most.nextafter(torch.tensor(2.0))
    step = (above - below) / 50
    keeping = [{"top_k": rank + 1}, {"top_p": below + step}, {"min_p": float(least)}]
    dropping = [{"top_k": rank}, {"top_p": below - step}, {"min_p": float(most)}]
    if kind == "equal":
        keeping, dropping = keeping[:2], dropping[:2]  # min_p drops no equals
    asked = keeping + dropping
    neutral = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
    params = drawing(
        len(asked),
        position=torch.full((len(asked),), 11),
        **{
            name: torch.tensor([each.get(name, value) for each in asked])
            for name, value in neutral.items()
        },
    )
    rows = logits.expand(len(asked), -1)
    got = sampled(rows, params, device, **(SMALL | {"capacity": capacity})).token_ids
    assert got.tolist() == reference.sample(rows, params).token_ids.tolist()
    assert (got == winner).tolist() == [True] * len(keeping) + [False] * len(dropping)


@pytest.mark.parametrize("capacity", [8, 128])
@pytest.mark.parametrize(("top_p", "count"), [(0.25, 24), (0.5, 48), (0.75, 72)])
def test_a_mass_that_is_reached_exactly_needs_no_further_token(top_p, count, capacity, device):
    """Of 96 equal logits: a draw that would take the next one, and one that takes the last."""
    logits = torch.zeros(1, 96)

    def place_of(token: int, among: int) -> int:
        for position in range(10_000):
            params = drawing(1, position=torch.tensor([position]), top_k=torch.tensor([among]))
            if winner_of(logits, params) == token:
                return position
        raise AssertionError("no draw takes it")

    places = [place_of(count, count + 1), place_of(count - 1, count)]
    params = drawing(2, position=torch.tensor(places), top_p=torch.full((2,), top_p))
    rows = logits.expand(2, -1)
    got = sampled(rows, params, device, **(SMALL | {"capacity": capacity})).token_ids.tolist()
    assert got == reference.sample(rows, params).token_ids.tolist()
    assert got[0] < count
    assert got[1] == count - 1


def test_exactly_k_tokens_are_ever_drawn(device):
    """Of 40 equal tokens top_k 3 keeps the first three."""
    count = 6
    params = drawing(count, top_k=torch.full((count,), 3), temperature=torch.full((count,), 9.0))
    out = sampled(torch.ones(count, 40), params, device, tile=64, group=8)
    assert 1 < len(set(out.token_ids.tolist())) <= 3
    assert int(out.token_ids.max()) <= 2
