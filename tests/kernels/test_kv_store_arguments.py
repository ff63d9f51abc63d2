"""What the public functions around the KV cache serve on a CPU, and what they refuse."""

from __future__ import annotations

import pytest
import torch

import kernels
from kernels import reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TOLERANCE = {torch.float32: 4e-6, torch.bfloat16: 3e-2, torch.float16: 4e-3}


def step(dtype=torch.float32, *, tokens=5, heads=(4, 2), hd=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    qkv = torch.randn(tokens, (heads[0] + 2 * heads[1]) * hd, generator=generator).to(dtype)
    sizes = [heads[0] * hd, heads[1] * hd, heads[1] * hd]
    q, k, v = (part.view(tokens, -1, hd) for part in qkv.split(sizes, dim=1))
    cache = torch.full((3, 2, heads[1], 8, hd), float("nan"), dtype=dtype)
    slots = torch.randperm(24, generator=generator)[:tokens]
    return qkv, (q, k, v, cache, slots)


def weights(dtype, hd=16):
    generator = torch.Generator().manual_seed(9)
    return {
        "q_norm": torch.randn(hd, generator=generator).to(dtype),
        "k_norm": torch.randn(hd, generator=generator).to(dtype),
        "norm_epsilon": 1e-3,
    }


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("turned", ["halves", "pairs", ""])
@pytest.mark.parametrize("last", [False, True], ids=["before", "after"])
def test_heads_are_normalised_before_they_turn_or_after(dtype, last, turned, offset):
    """A layer without rotary normalises all the same."""
    options = weights(dtype) | {"norm_weight_offset": offset, "norm_after_turn": last}
    if turned:
        options["interleaved"] = turned == "pairs"
        options["cos_sin"] = kernels.rotary_table(dim=8, max_positions=20, theta=100.0)
        options["positions"] = torch.tensor([3, 0, 19, 7, 7])
    qkv, arguments = step(dtype)
    wanted_qkv, wanted = step(dtype)
    before = qkv.clone()
    kernels.rotary_store_kv(*arguments, **options)
    reference.rotary_store_kv(*wanted, **options)
    torch.testing.assert_close(
        qkv.float(), wanted_qkv.float(), rtol=0, atol=TOLERANCE[dtype] * float(before.abs().max())
    )
    torch.testing.assert_close(
        arguments[3].float(), wanted[3].float(), rtol=0, atol=TOLERANCE[dtype] * 4, equal_nan=True
    )
    values = 6 * 16  # the columns of v
    assert torch.equal(qkv[:, values:], before[:, values:])
    assert not torch.equal(qkv[:, :values], before[:, :values])


def test_the_epsilon_of_the_norm_is_the_given_one():
    _, arguments = step()
    arguments[0].zero_().add_(1e-3)
    options = weights(torch.float32) | {"norm_epsilon": 1e-6}
    kernels.rotary_store_kv(*arguments, **options)
    wanted = options["q_norm"] * 1e-3 / (1e-6 + 1e-6) ** 0.5
    torch.testing.assert_close(arguments[0], wanted.expand(5, 4, 16))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_norm_over_all_heads_is_one_of_rows(dtype):
    """Queries and keys that were normalised as rows are no neighbours in memory any more."""
    (qkv, (q, k, v, cache, slots)), (_, wanted) = step(dtype), step(dtype)
    generator = torch.Generator().manual_seed(4)
    weight = torch.randn(6 * 16, generator=generator).to(dtype)
    rows = (qkv[:, : 4 * 16], weight[: 4 * 16]), (qkv[:, 4 * 16 : 6 * 16], weight[4 * 16 :])
    normed = [kernels.add_rms_norm(x, None, w, 1e-5)[0] for x, w in rows]
    exact = [reference.add_rms_norm(x, None, w, 1e-5)[0] for x, w in rows]
    table = kernels.rotary_table(dim=8, max_positions=20, theta=100.0)
    turn = {"cos_sin": table, "positions": torch.tensor([3, 0, 19, 7, 7])}
    q, k = (x.view(5, -1, 16) for x in normed)
    kernels.rotary_store_kv(q, k, v, cache, slots, **turn)
    exact_q, exact_k = (x.view(5, -1, 16) for x in exact)
    reference.rotary_store_kv(exact_q, exact_k, *wanted[2:], **turn)
    for got, right in ((q, exact_q), (k, exact_k), (cache, wanted[3])):
        limit = TOLERANCE[dtype] * 4
        torch.testing.assert_close(got.float(), right.float(), rtol=0, atol=limit, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn], ids=str)
def test_a_quantised_cache_is_refused_on_a_cpu(dtype):
    _, (q, k, v, cache, slots) = step()
    before = q.clone()
    cache = torch.zeros(cache.shape, dtype=torch.uint8).view(dtype)
    with pytest.raises(NotImplementedError, match="a CPU writes no quantised KV cache"):
        kernels.rotary_store_kv(
            q, k, v, cache, slots, kv_scales=torch.ones(cache.shape[:4]), **weights(torch.float32)
        )
    assert torch.equal(q, before)


def refused(message, *, change=None, **options):
    _, arguments = step()
    arguments = list(arguments)
    for index, value in (change or {}).items():
        arguments[index] = value
    with pytest.raises(ValueError, match=message):
        kernels.rotary_store_kv(*arguments, **options)


def test_wrong_norms_and_scales_are_refused_by_name():
    norm = torch.ones(16)
    refused("q_norm is given without k_norm", q_norm=norm)
    refused("k_norm is given without q_norm", k_norm=norm)
    refused(r"k_norm has shape \[8\]; it must be \[16\]", q_norm=norm, k_norm=norm[:8])
    refused("q_norm is int64; it must be one of", q_norm=norm.long(), k_norm=norm)
    refused("k_norm is on meta; it must be on cpu", q_norm=norm, k_norm=norm.to("meta"))
    table = torch.ones(9, 16)
    positions = torch.zeros(5, dtype=torch.int64, device="meta")
    refused("positions is on meta; it must be on cpu", cos_sin=table, positions=positions)
    numbers = torch.zeros(3, 2, 2, 8, 16, dtype=torch.int8)
    scales = torch.ones(3, 2, 2, 8)
    refused("cache_layer is int8; it must be one of float32", change={3: numbers})
    refused("cache_layer is float32; it must be one of float8_e4m3fn, int8", kv_scales=scales)
    for wrong, message in (
        (scales[:, :1], r"kv_scales has shape \[3, 1, 2, 8\]; it must be \[3, 2, 2, 8\]"),
        (scales.half(), "kv_scales is float16; it must be one of float32"),
        (scales.transpose(2, 3).contiguous().transpose(2, 3), "kv_scales has strides"),
    ):
        refused(message, change={3: numbers}, kv_scales=wrong)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("index", [torch.int32, torch.int64], ids=str)
def test_blocks_are_staged_and_come_back_elsewhere(dtype, index):
    generator = torch.Generator().manual_seed(1)
    cache = torch.randn(2, 6, 2, 3, 4, 5, generator=generator).to(dtype)
    before = cache.clone()
    sources = torch.tensor([5, 1, 1], dtype=index)
    staged = torch.full((2, 3, 2, 3, 4, 5), float("nan"), dtype=dtype)
    kernels.gather_blocks(cache, sources, staged)
    assert torch.equal(staged, before[:, [5, 1, 1]])
    assert torch.equal(cache, before)
    kernels.scatter_blocks(cache, torch.tensor([0, 5, 2], dtype=index), staged)
    wanted = before.clone()
    wanted[:, [0, 5, 2]] = before[:, [5, 1, 1]]
    assert torch.equal(cache, wanted)
    kernels.gather_blocks(cache, sources[:0], staged[:, :0].clone())
    assert torch.equal(cache, wanted)


@pytest.mark.parametrize(
    ("ids", "staged", "message"),
    [
        (torch.zeros(3), torch.zeros(2, 3, 2, 1, 4, 5), "is float32; it must be one of int32"),
        (
            torch.tensor([1]),
            torch.zeros(2, 3, 2, 1, 4, 5),
            r"has shape \[2, 3, 2, 1, 4, 5\]; it must be \[2, 1, 2, 1, 4, 5\]",
        ),
        (
            torch.tensor([1]),
            torch.zeros(2, 1, 2, 1, 4, 5, dtype=torch.float16),
            "is float16; it must be one of float32",
        ),
        (torch.tensor([1, 2]), torch.zeros(2, 2, 2, 1, 4, 5).transpose(0, 1), "contiguous"),
        (torch.tensor([1]), torch.zeros(2, 1, 2, 1, 4, 5, device="meta"), "on meta"),
    ],
)
def test_wrong_staging_is_refused_by_name(ids, staged, message):
    cache = torch.zeros(2, 6, 2, 1, 4, 5)
    with pytest.raises(ValueError, match=message):
        kernels.gather_blocks(cache, ids, staged)
    with pytest.raises(ValueError, match=message):
        kernels.scatter_blocks(cache, ids, staged)
