"""Copies of whole blocks, to the bit."""

from __future__ import annotations

import pytest
import torch

from kernels import reference
from kernels.gpu import block_copy

DTYPES = [torch.float32, torch.bfloat16, torch.int8, torch.float8_e4m3fn]
# The last one's blocks are 6 elements: words of 8, 4, 2 and 1 bytes all occur.
SHAPES = [(2, 9, 2, 2, 16, 64), (1, 9, 2, 1, 4, 5), (3, 9, 2, 1, 3, 1)]


def random_cache(shape, dtype, device, seed=0):
    """Every bit pattern, NaN included."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.Size(shape).numel() * dtype.itemsize
    content = torch.randint(0, 256, (size,), dtype=torch.uint8, generator=generator)
    return content.view(dtype).view(shape).to(device)


def same_bits(a, b):
    return torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def check_copies(cache, pairs):
    sources, destinations = torch.tensor(pairs, device=cache.device).view(-1, 2).T
    wanted = cache.clone()
    reference.copy_blocks(wanted, sources, destinations)
    assert not same_bits(wanted, cache)
    block_copy.copy_blocks(cache, sources, destinations)
    assert same_bits(cache, wanted)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    "pairs",
    [
        [(3, 5)],
        [(0, 1), (0, 2), (0, 8)],  # forks of one block
        [(1, 2), (2, 1)],  # an exchange
        [(1, 2), (2, 3), (3, 4), (4, 5), (5, 0)],  # a chain, forwards
        [(5, 0), (4, 5), (3, 4), (2, 3), (1, 2)],  # and backwards
        [(4, 4), (6, 7)],  # a block to itself
    ],
    ids=["one", "forks", "exchange", "chain", "backwards", "itself"],
)
def test_all_sources_are_read_before_any_block_is_written(dtype, shape, pairs, device):
    check_copies(random_cache(shape, dtype, device), pairs)


@pytest.mark.parametrize("count", [9, 64, 65, 257, 1024])
def test_a_permutation_of_many_blocks(count, device):
    """Every block is a source and a destination."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(count)).tolist()
    cache = random_cache((2, count + 1, 2, 1, 3, 2), torch.float32, device)
    check_copies(cache, list(zip(range(count), order, strict=True)))


def test_more_pairs_than_registers_hold_go_through_a_buffer(monkeypatch, device):
    monkeypatch.setattr(block_copy, "HELD_PAIRS", 8)
    cache = random_cache((3, 11, 2, 1, 3, 2), torch.float32, device)
    check_copies(cache, [(block, (block + 1) % 11) for block in range(11)])


@pytest.mark.parametrize("index", [torch.int32, torch.int64], ids=str)
def test_ids_of_both_types_and_with_a_stride(index, device):
    cache = random_cache(SHAPES[0], torch.float16, device)
    wanted = cache.clone()
    pairs = torch.tensor([[7, 0], [0, 7], [5, 2]], dtype=index, device=device)
    reference.copy_blocks(wanted, pairs[:, 0], pairs[:, 1])
    block_copy.copy_blocks(cache, pairs[:, 0], pairs[:, 1])
    assert same_bits(cache, wanted)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_blocks_are_staged_and_come_back_elsewhere(dtype, shape, device):
    cache = random_cache(shape, dtype, device)
    before = cache.clone()
    sources = torch.tensor([8, 0, 3, 3], dtype=torch.int32, device=device)
    staged = random_cache((shape[0], 4, *shape[2:]), dtype, device, seed=1)
    wanted = staged.clone()
    reference.gather_blocks(cache, sources, wanted)
    block_copy.gather_blocks(cache, sources, staged)
    assert same_bits(staged, wanted)
    assert same_bits(cache, before)
    destinations = torch.tensor([1, 8, 5, 0], device=device)
    reference.scatter_blocks(before, destinations, staged)
    block_copy.scatter_blocks(cache, destinations, staged)
    assert same_bits(cache, before)
    assert same_bits(staged, wanted)


def test_blocks_and_layers_beyond_32_bits_of_words(device):
    """Both last block and last layer lie 2^31 words in; on a CPU what is between is not touched."""
    blocks = 2**17 + 10  # of 2 * 16383 bytes, which are copied as words of 2 bytes
    try:
        cache = torch.empty((2, blocks, 2, 1, 1, 16383), dtype=torch.int8, device=device)
    except RuntimeError:
        pytest.skip("the machine does not lend 8.6 GB of addresses")
    assert (blocks - 1) * 16383 > 2**31
    cache[:, 0], cache[:, -1] = 7, 9
    block_copy.copy_blocks(cache, *torch.tensor([[0, blocks - 1], [blocks - 1, 0]], device=device))
    assert bool((cache[:, 0] == 9).all())
    assert bool((cache[:, -1] == 7).all())
    staged = torch.empty((2, 1, *cache.shape[2:]), dtype=torch.int8, device=device)
    block_copy.gather_blocks(cache, torch.tensor([blocks - 1], device=device), staged)
    assert bool((staged == 7).all())


def test_scales_are_blocks_with_one_channel(device):
    scales = random_cache((2, 6, 2, 3, 16), torch.float32, device)
    wanted = scales.clone()
    wanted[:, 4] = scales[:, 1]
    ids = torch.tensor([[1], [4]], device=device)
    block_copy.copy_blocks(scales.unsqueeze(-1), *ids)
    assert same_bits(scales, wanted)


def test_nothing_to_copy(device):
    cache = random_cache(SHAPES[1], torch.float32, device)
    before, none = cache.clone(), torch.empty(0, dtype=torch.int64, device=device)
    block_copy.copy_blocks(cache, none, none)
    empty = cache[:, :0].clone()
    block_copy.gather_blocks(cache, none, empty)
    block_copy.scatter_blocks(cache, none, empty)
    assert same_bits(cache, before)
