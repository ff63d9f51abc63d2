"""Norm, turn and store against the reference; whatever is not named stays as it was, to the bit."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from kernels import reference, rotary_table
from kernels.gpu import kv_store
from kernels.types import HeadNorms

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Relative to the largest value: a few roundings in float32, or two to 16 bits.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}
BYTE = {torch.int8: -77, torch.float8_e4m3fn: 0x5B}  # what an untouched quantised cache holds


@dataclass
class Step:
    """One packed qkv with NaN around it, a poisoned cache, and slots in no order."""

    qkv: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    cache: Tensor
    slots: Tensor
    options: dict

    def copy(self) -> Step:
        """The same step on other memory; slots and tables, which nothing writes, are shared."""
        tokens, (q_heads, hd), kv_heads = self.q.shape[0], self.q.shape[1:], self.k.shape[1]
        qkv = self.qkv.clone()
        options = dict(self.options)
        if "kv_scales" in options:
            options["kv_scales"] = options["kv_scales"].clone()
        q, k, v = split(qkv, tokens, q_heads, kv_heads, hd)
        cache = bits(self.cache).clone().view(self.cache.dtype)
        return Step(qkv, q, k, v, cache, self.slots, options)


def split(qkv, tokens, q_heads, kv_heads, hd):
    """q, k and v in the middle of rows that are wider: 16 columns before, 8 behind."""
    sizes = [16, q_heads * hd, kv_heads * hd, kv_heads * hd, 8]
    return [part.view(tokens, part.shape[1] // hd, hd) for part in qkv.split(sizes, dim=1)[1:4]]


def bits(tensor: Tensor) -> Tensor:
    return tensor.view({1: torch.uint8, 2: torch.int16, 4: torch.int32}[tensor.itemsize])


def step(
    device,
    *,
    seed=0,
    dtype=torch.float32,
    tokens=5,
    heads=(4, 2),
    hd=64,
    block_size=16,
    blocks=3,
    dim=None,
    interleaved=False,
    norm=False,
    cache_dtype=None,
    padded=(),
):
    """``dim`` channels turn: all when None, none when 0. Tokens in ``padded`` have slot -1."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator)

    q_heads, kv_heads = heads
    qkv = torch.full((tokens, 24 + (q_heads + 2 * kv_heads) * hd), float("nan"))
    qkv[:, 16:-8] = random(tokens, (q_heads + 2 * kv_heads) * hd) * 3
    qkv = qkv.to(device, dtype)
    slots = torch.randperm(blocks * block_size, generator=generator)[:tokens].to(device)
    slots[list(padded)] = -1
    shape = (blocks, 2, kv_heads, block_size, hd)
    options = {}
    if cache_dtype is None:
        cache = torch.full(shape, float("nan"), device=device, dtype=dtype)
    else:
        poison = torch.full(shape, BYTE[cache_dtype] % 256, dtype=torch.uint8, device=device)
        cache = poison.view(cache_dtype)
        options["kv_scales"] = torch.full(shape[:4], float("nan"), device=device)
    dim = hd if dim is None else dim
    if dim:
        table = rotary_table(dim=dim, max_positions=40, theta=100.0).to(device)
        positions = torch.randint(0, 40, (tokens,), generator=generator).to(device)
        positions[list(padded)] = 2**60  # read by nobody
        options |= {"cos_sin": table, "positions": positions, "interleaved": interleaved}
    if norm:
        weights = {name: random(hd).to(device, dtype) for name in ("q_norm", "k_norm")}
        options |= weights | {"norm_epsilon": 1e-5}
    return Step(
        qkv, *split(qkv, tokens, q_heads, kv_heads, hd), cache=cache, slots=slots, options=options
    )


def run(given: Step) -> None:
    options = given.options
    norms = None
    if "q_norm" in options:
        norms = HeadNorms(
            options["q_norm"],
            options["k_norm"],
            options["norm_epsilon"],
            options.get("norm_weight_offset", 0.0),
            options.get("norm_after_turn", False),
        )
    kv_store.rotary_store_kv(
        given.q,
        given.k,
        given.v,
        given.cache,
        given.slots,
        options.get("positions"),
        options.get("cos_sin"),
        options.get("interleaved", False),
        norms,
        options.get("kv_scales"),
    )


def run_reference(given: Step) -> None:
    """Tokens with a slot only: the reference knows no padding."""
    kept = given.slots >= 0
    options = dict(given.options)
    if "positions" in options:
        options["positions"] = options["positions"][kept]
    q, k, v = given.q[kept], given.k[kept], given.v[kept]
    reference.rotary_store_kv(q, k, v, given.cache, given.slots[kept], **options)
    given.q[kept], given.k[kept] = q, k


def written(given: Step) -> Tensor:
    """[blocks, 2, Hkv, block_size] bool: the slots that were named."""
    mask = torch.zeros(given.cache.shape[:4], dtype=torch.bool, device=given.cache.device)
    slots = given.slots[given.slots >= 0]
    block_size = given.cache.shape[3]
    mask[slots // block_size, :, :, slots % block_size] = True
    return mask


def check(given: Step) -> Step:
    """Runs kernel and reference on copies of ``given``; returns the kernel's."""
    got, wanted = given.copy(), given.copy()
    run(got)
    run_reference(wanted)
    limit = TOLERANCE[given.q.dtype] * float(given.q.abs().max())
    for ours, theirs in ((got.q, wanted.q), (got.k, wanted.k)):
        torch.testing.assert_close(ours.float(), theirs.float(), rtol=0, atol=limit)
        if given.q.dtype is not torch.float32:  # rounded as often: nearly all to the bit
            assert int((bits(ours) != bits(theirs)).sum()) <= 1 + ours.numel() // 100
    # Nothing else of the packed tensor has changed: v, the columns around, the padded tokens.
    same = torch.ones_like(bits(given.qkv), dtype=torch.bool)
    q_heads, hd = given.q.shape[1:]
    for part in split(same, given.q.shape[0], q_heads, given.k.shape[1], hd)[:2]:
        part[given.slots >= 0] = False
    assert torch.equal(bits(got.qkv)[same], bits(given.qkv)[same])
    check_cache(given, got)
    return got


def check_cache(given: Step, got: Step) -> None:
    """Named slots hold what k and v now are, to the bit; the others what they held."""
    wanted = given.copy()
    plain = {name: value for name, value in got.options.items() if name == "kv_scales"}
    if plain:
        plain = {"kv_scales": wanted.options["kv_scales"]}
    kept = given.slots >= 0
    k, v = got.k[kept], got.v[kept]
    reference.rotary_store_kv(k.clone(), k, v, wanted.cache, given.slots[kept], **plain)
    mask = written(given)
    assert torch.equal(bits(got.cache), bits(wanted.cache))
    assert torch.equal(bits(got.cache)[~mask], bits(given.cache)[~mask])
    if plain:
        assert torch.equal(bits(got.options["kv_scales"]), bits(plain["kv_scales"]))
        assert bool(got.options["kv_scales"][~mask].isnan().all())


HEADS = [  # type, head_dim, channels that turn
    *((torch.float32, hd, dim) for hd, dim in [(64, 64), (64, 16), (96, 96), (112, 112), (6, 4)]),
    *((torch.bfloat16, hd, dim) for hd, dim in [(64, 64), (80, 32), (128, 128)]),
    *((torch.float16, hd, dim) for hd, dim in [(64, 64), (128, 64), (256, 256)]),
]


# Each with and without a norm and in halves and pairs: the two together in every other one.
TURNS = [
    (*head, norm, norm != bool(place % 2)) for place, head in enumerate(HEADS) for norm in (0, 1)
]


@pytest.mark.parametrize(("dtype", "hd", "dim", "norm", "interleaved"), TURNS, ids=str)
def test_turned_and_stored_as_the_reference_does(dtype, norm, interleaved, hd, dim, device):
    check(step(device, seed=hd, dtype=dtype, norm=norm, interleaved=interleaved, hd=hd, dim=dim))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [0, 16, 64])
def test_weights_that_are_added_to_one(dtype, dim, device):
    given = step(device, dtype=dtype, norm=True, dim=dim)
    plain = given.copy()
    given.options["norm_weight_offset"] = 1.0
    got = check(given)
    run(plain)
    assert not torch.equal(got.q, plain.q)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("interleaved", [False, True], ids=["halves", "pairs"])
@pytest.mark.parametrize("dim", [16, 64])
def test_heads_that_turn_before_they_are_normalised(dtype, dim, interleaved, device):
    given = step(device, dtype=dtype, norm=True, interleaved=interleaved, dim=dim)
    first = given.copy()
    given.options["norm_after_turn"] = True
    got = check(given)
    run(first)
    assert not torch.equal(got.q, first.q)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("norm", [False, True], ids=["", "norm"])
def test_nothing_turns(dtype, norm, device):
    """As in a family with learned positions; without a norm only the cache changes."""
    given = step(device, dtype=dtype, norm=norm, dim=0)
    got = check(given)
    assert torch.equal(bits(got.qkv), bits(given.qkv)) != norm


@pytest.mark.parametrize("heads", [(1, 1), (3, 3), (14, 2), (12, 12), (32, 2), (9, 1)], ids=str)
@pytest.mark.parametrize("tokens", [1, 5, 9])
def test_any_number_of_heads_and_tokens(heads, tokens, device):
    check(step(device, seed=tokens, tokens=tokens, heads=heads, hd=32, dtype=torch.float16))


@pytest.mark.parametrize("cache_dtype", [torch.int8, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("hd", "dim"), [(64, 64), (80, 32), (96, 0)])
def test_a_quantised_cache_holds_the_references_numbers(cache_dtype, dtype, hd, dim, device):
    options = {"hd": hd, "dim": dim, "dtype": dtype, "cache_dtype": cache_dtype}
    check(step(device, seed=hd, norm=True, padded=[1], **options))


@pytest.mark.parametrize("cache_dtype", [torch.int8, torch.float8_e4m3fn], ids=str)
def test_every_number_of_a_format_and_every_tie_between_two(cache_dtype, device):
    """Heads whose scale is 1, so that the numbers are the values themselves; and one of zeros."""
    if cache_dtype is torch.int8:
        numbers = torch.arange(-127, 128).float()
    else:
        numbers = torch.arange(256, dtype=torch.uint8).view(cache_dtype).float()
        numbers = numbers[numbers.isfinite()]
    ordered = numbers.unique()
    ties = (ordered[1:] + ordered[:-1]) / 2
    points = torch.cat((ordered, ties, ties.nextafter(ordered[1:]), ties.nextafter(ordered[:-1])))
    points = torch.cat((points, torch.zeros(-len(points) % 63)))
    largest = torch.full((len(points) // 63, 1), ordered[-1])
    values = torch.cat((torch.cat((points.view(-1, 63), largest), dim=1), torch.zeros(1, 64)))
    tokens = values.shape[0]
    given = step(
        device, tokens=tokens, heads=(1, 1), dim=0, blocks=2, block_size=64, cache_dtype=cache_dtype
    )
    given.k[:, 0], given.v[:, 0] = values.to(device), values.flip(0).to(device)
    got = check(given)
    scales = got.options["kv_scales"][written(given)]
    assert bool((scales == 1).all())


@pytest.mark.parametrize("cache_dtype", [torch.int8, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("dim", [0, 16, 64])
def test_a_head_that_is_no_number_gets_a_scale_that_is_none(cache_dtype, dim, device):
    """And its neighbours do not: what is read back must not look like a number."""
    given = step(device, tokens=3, dim=dim, cache_dtype=cache_dtype)
    given.k[1, 0, 5] = given.v[2, 1, 63] = float("nan")
    given.options.pop("interleaved", None)
    run(given)
    block, offset = given.slots // 16, given.slots % 16
    scales = given.options["kv_scales"][block, :, :, offset]  # [tokens, 2, Hkv]
    assert scales.isnan().nonzero().tolist() == [[1, 0, 0], [2, 1, 1]]


def test_padding_writes_nothing(device):
    """Neither the cache nor q and k, and no position of theirs is looked up."""
    given = step(device, tokens=6, norm=True, padded=[0, 3, 5])
    got = check(given)
    for name in ("q", "k", "v"):
        ours, before = getattr(got, name)[[0, 3, 5]], getattr(given, name)[[0, 3, 5]]
        assert torch.equal(ours, before)
    alone = step(device, tokens=4, norm=True, padded=range(4))
    assert torch.equal(bits(check(alone).qkv), bits(alone.qkv))


def test_slots_beyond_32_bits_of_elements(device):
    """The last slot lies 2^31 elements in; on a CPU the memory up to there is never touched."""
    given = step(device, tokens=2, heads=(1, 1), hd=64, dtype=torch.float16)
    blocks = 2**18 + 1
    given.cache = torch.empty((blocks, 2, 1, 64, 64), dtype=torch.float16, device=device)
    given.slots = torch.tensor([blocks * 64 - 1, 1], device=device)
    run(given)
    assert torch.equal(given.cache[-1, 0, 0, -1], given.k[0, 0])
    assert torch.equal(given.cache[-1, 1, 0, -1], given.v[0, 0])
    assert torch.equal(given.cache[0, 0, 0, 1], given.k[1, 0])


@pytest.mark.parametrize("block_size", [1, 16, 32, 64, 128])
def test_block_sizes(block_size, device):
    check(step(device, block_size=block_size, blocks=9, dtype=torch.bfloat16))


def test_separate_tensors_and_norm_weights_of_another_type(device):
    given = step(device, norm=True, dtype=torch.bfloat16)
    got = given.copy()
    got.q, got.k, got.v = got.q.clone(), got.k.clone(), got.v.clone()
    for name in ("q_norm", "k_norm"):
        got.options[name] = torch.stack((given.options[name].float(),) * 2, dim=1)[:, 0]
    run(got)
    wanted = given.copy()
    run(wanted)
    assert torch.equal(got.q, wanted.q)
    assert torch.equal(got.k, wanted.k)
    assert torch.equal(bits(got.cache), bits(wanted.cache))


@pytest.mark.parametrize("hd", [64, 128])
def test_a_tokens_bits_do_not_depend_on_its_neighbours(hd, device):
    given = step(device, tokens=5, hd=hd, norm=True)
    together = given.copy()
    run(together)
    for token in range(5):
        alone = given.copy()
        alone.slots = torch.full_like(given.slots, -1)
        alone.slots[token] = given.slots[token]
        run(alone)
        assert torch.equal(alone.q[token], together.q[token])
        assert torch.equal(alone.k[token], together.k[token])
        only = {name: value for name, value in given.options.items() if name != "positions"}
        single = given.copy()
        single.q, single.k, single.v = (
            part[token : token + 1] for part in (single.q, single.k, single.v)
        )
        single.slots = given.slots[token : token + 1]
        single.options = only | {"positions": given.options["positions"][token : token + 1]}
        run(single)
        assert torch.equal(single.q[0], together.q[token])


def test_no_tokens(device):
    given = step(device, tokens=0)
    run(given)
    assert bool(given.cache.isnan().all())
