"""Native rotary and stores to the cache against the reference, and torch's rounding to the bit."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

import kernels
from kernels import reference
from kernels.cpu.native.attention import rotary_store_kv
from kernels.types import HeadNorms
from tests.kernels.native.native_steps import PLAIN_CACHES, threads

pytestmark = pytest.mark.usefixtures("native_level")

each_cache = pytest.mark.parametrize("cache", PLAIN_CACHES, ids=str)


def views(tokens: int, heads: tuple[int, int], head_dim: int, seed: int = 0) -> tuple[Tensor, ...]:
    """qkv, and q, k and v, which are views of it."""
    generator = torch.Generator().manual_seed(seed)
    counts = (heads[0], heads[1], heads[1])
    qkv = torch.randn(tokens, sum(counts) * head_dim, generator=generator)
    parts = qkv.split([count * head_dim for count in counts], dim=1)
    return (qkv, *(part.unflatten(1, (-1, head_dim)) for part in parts))


ORDERS = list(itertools.product(("halves", "pairs", ""), (0, 1), ("before", "after", "")))


@each_cache
@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.parametrize(("head_dim", "turned"), [(16, 8), (16, 16), (24, 6), (8, 2)])
def test_heads_are_normalised_and_turned_and_stored(
    head_dim: int, turned: int, order: tuple[str, int, str], cache: torch.dtype
) -> None:
    turn, offset, last = order
    table = kernels.rotary_table(dim=turned, max_positions=20, theta=100.0) if turn else None
    positions = torch.tensor([3, 0, 19, 7, 7]) if turn else None
    weights = torch.randn(2, head_dim)
    norms = HeadNorms(weights[0], weights[1], 1e-3, float(offset), last == "after")
    slots = torch.tensor([23, 0, 9, 8, 15])
    layer = torch.full((3, 2, 2, 8, head_dim), torch.nan, dtype=cache)
    wide = torch.full(layer.shape, torch.nan)
    qkv, *arguments = views(5, (4, 2), head_dim)
    right, *wanted = views(5, (4, 2), head_dim)
    interleaved = turn == "pairs"
    rotary_store_kv(
        *arguments, layer, slots, positions, table, interleaved, norms if last else None
    )
    options = {"q_norm": weights[0], "k_norm": weights[1]} if last else {}
    reference.rotary_store_kv(
        *wanted,
        wide,
        slots,
        positions=positions,
        cos_sin=table,
        interleaved=interleaved,
        norm_epsilon=1e-3,
        norm_weight_offset=offset,
        norm_after_turn=last == "after",
        **options,
    )
    torch.testing.assert_close(qkv, right, rtol=0, atol=4e-6)
    values = 6 * head_dim
    assert torch.equal(qkv[:, values:], right[:, values:])
    stored = torch.full(layer.shape, torch.nan, dtype=cache)
    for token, slot in enumerate(slots.tolist()):
        for half in (0, 1):
            stored[slot // 8, half, :, slot % 8] = arguments[1 + half][token].to(cache)
    torch.testing.assert_close(layer, stored, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_blocks_apart_tokens_of_any_number_and_threads(count: int) -> None:
    for tokens in (0, 1, 13):
        _, q, k, v = views(tokens, (2, 1), 16, seed=tokens)
        others = torch.full((4, 3, 2, 1, 4, 16), torch.nan)
        slots = torch.randperm(16)[:tokens]
        with threads(count):
            rotary_store_kv(q, k, v, others[:, 1], slots, None, None, False)
        stored = others[:, 1].permute(0, 3, 1, 2, 4).reshape(16, 2, 16)
        assert torch.equal(stored[slots, 0], k[:, 0])
        assert torch.equal(stored[slots, 1], v[:, 0])
        rest = torch.ones(16, dtype=torch.bool)
        rest[slots] = False
        assert bool(stored[rest].isnan().all())
        assert bool(others[:, ::2].isnan().all())


def test_queries_alone_are_turned_and_the_cache_is_left() -> None:
    _, q, k, v = views(5, (4, 2), 16)
    _, right, *_ = views(5, (4, 2), 16)
    table = kernels.rotary_table(dim=8, max_positions=20, theta=100.0)
    layer = torch.full((3, 2, 2, 8, 16), torch.nan)
    positions, slots = torch.arange(5), torch.arange(5)
    norms = HeadNorms(torch.ones(16), torch.ones(16), 1e-3)
    rotary_store_kv(q, None, None, layer, slots, positions, table, False, norms)
    whole = layer.clone()
    rotary_store_kv(right, k, v, whole, slots, positions, table, False, norms)
    assert torch.equal(q, right)
    assert bool(layer.isnan().all())


def stored_bits(values: Tensor, cache: torch.dtype) -> tuple[Tensor, Tensor]:
    """What the store makes of values, and what torch makes of them."""
    values = torch.cat((values, values.new_zeros(-values.numel() % 1024)))
    heads = values.view(-1, 1, 512)
    layer = torch.zeros(heads.shape[0] // 8 + 1, 2, 1, 8, 512, dtype=cache)
    rotary_store_kv(
        heads, heads.clone(), heads, layer, torch.arange(heads.shape[0]), None, None, False
    )
    keys = layer[:, 0, 0].reshape(-1, 512)[: heads.shape[0]].flatten()
    held = layer[:, 1, 0].reshape(-1, 512)[: heads.shape[0]].flatten()
    rounded = values.to(cache)
    assert torch.equal(keys.isnan(), rounded.isnan())
    assert torch.equal(keys.view(torch.int16), held.view(torch.int16))
    numbers = ~rounded.isnan()
    return keys.view(torch.int16)[numbers], rounded.view(torch.int16)[numbers]


@pytest.mark.parametrize("cache", PLAIN_CACHES[1:], ids=str)
def test_stores_round_as_torch_does(cache: torch.dtype) -> None:
    """Every 16-bit value, its neighbours in float32, and the middles between two: ties and what is
    just beside them, subnormal, overflowing and infinite ones included."""
    patterns = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(cache)
    exact = patterns.float()
    near = exact.view(torch.int32)
    half = 2**15 if cache is torch.bfloat16 else 2**12
    for offset in (0, 1, -1, half, half - 1, half + 1, -half):
        got, right = stored_bits((near + offset).view(torch.float32), cache)
        assert torch.equal(got, right), offset
    finite = exact[exact.isfinite()].double().sort().values
    middles = ((finite[1:] + finite[:-1]) / 2).float()
    for values in (middles, middles.nextafter(torch.tensor(9e9)), torch.randn(4096) * 1e-6):
        got, right = stored_bits(values, cache)
        assert torch.equal(got, right)


@pytest.mark.parametrize("cache", PLAIN_CACHES[1:], ids=str)
def test_stores_round_random_bit_patterns_as_torch_does(cache: torch.dtype) -> None:
    bits = torch.randint(-(2**31), 2**31, (2**18,), dtype=torch.int64).to(torch.int32)
    got, right = stored_bits(bits.view(torch.float32), cache)
    assert torch.equal(got, right)


def quantised_store(k: Tensor, v: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """Tokens one after the other in blocks of 8: numbers and scales, NaN where nothing is."""
    tokens, heads, _ = k.shape
    numbers = torch.full((tokens // 8 + 1, 2, heads, 8, head_dim), 99, dtype=torch.int8)
    scales = torch.full(numbers.shape[:4], torch.nan)
    q, slots = torch.zeros(tokens, heads, head_dim), torch.arange(tokens)
    rotary_store_kv(q, k, v, numbers, slots, None, None, False, kv_scales=scales)
    return numbers, scales


HEAD_KINDS = {
    "usual": lambda heads: heads,
    "zero": torch.zeros_like,
    "one large": lambda heads: heads.index_fill(2, torch.tensor(3), 1e4),
    "least": lambda heads: heads.sign() * 1e-45,  # times 127 still below the least normal number
    "subnormal": lambda heads: heads * 1e-42,
    "largest": lambda heads: heads.sign() * 3.4028234e38,
    "ties": lambda heads: (heads * 40).round().clamp(-126, 126).add(0.5).index_fill(
        2, torch.tensor(0), 127.0
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", HEAD_KINDS)
@pytest.mark.parametrize("head_dim", [8, 24, 64, 80])
def test_an_int8_cache_has_the_references_numbers_and_scales(kind: str, head_dim: int) -> None:
    _, _, k, v = views(13, (2, 3), head_dim, seed=head_dim)
    k, v = (HEAD_KINDS[kind](one.contiguous()) for one in (k, v))
    got = quantised_store(k.clone(), v.clone(), head_dim)
    right = tuple(torch.full_like(one, 99 if i == 0 else torch.nan) for i, one in enumerate(got))
    reference.rotary_store_kv(
        torch.zeros(13, 3, head_dim), k, v, right[0], torch.arange(13), kv_scales=right[1]
    )
    assert torch.equal(got[0], right[0])
    torch.testing.assert_close(got[1], right[1], rtol=0, atol=0, equal_nan=True)
    assert int(got[0][0, :, :, :8].abs().max()) <= 127


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_head_that_is_not_finite_has_no_number_for_a_scale(bad: float) -> None:
    _, _, k, v = views(5, (2, 2), 16)
    clean = quantised_store(k.clone(), v.clone(), 16)
    k = k.clone()
    k[2, 1, 7] = bad
    numbers, scales = quantised_store(k, v.clone(), 16)
    assert bool(scales[0, 0, 1, 2].isnan())
    assert not bool(numbers[0, 0, 1, 2].any())
    scales[0, 0, 1, 2], numbers[0, 0, 1, 2] = clean[1][0, 0, 1, 2], clean[0][0, 0, 1, 2]
    assert torch.equal(numbers, clean[0])
    torch.testing.assert_close(scales, clean[1], rtol=0, atol=0, equal_nan=True)


def test_what_there_is_not_is_refused() -> None:
    _, q, k, v = views(2, (4, 2), 16)
    layer, slots = torch.zeros(1, 2, 2, 8, 16), torch.arange(2)
    with pytest.raises(ValueError, match=r"the cache is in torch.float32, with its scales"):
        rotary_store_kv(
            q, k, v, layer, slots, None, None, False, kv_scales=torch.ones(layer.shape[:4])
        )
    with pytest.raises(ValueError, match=r"the cache is in torch.int8, with no scales"):
        rotary_store_kv(q, k, v, layer.to(torch.int8), slots, None, None, False)
    with pytest.raises(ValueError, match="native kernels compute on float32"):
        rotary_store_kv(q, k.half(), v, layer, slots, None, None, False)
