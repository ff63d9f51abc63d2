"""Decode attention over the paged cache against the reference."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from kernels import tuning
from kernels.gpu import attention, paged_decode
from kernels.types import AttentionFeatures
from tests.kernels.attention_cases import make_step
from tests.kernels.gpu.attention.decode_steps import (
    TOLERANCE,
    check,
    decode_step,
    metadata_on,
    planned,
    poisoned_buffer,
    quantised,
    run,
    wanted,
)

# Triton 3.6's interpreter turns arrays of one element into numbers, of which NumPy warns.
RAGGED = [1, 200, 63, 64, 65]
FLOAT8 = torch.float8_e4m3fn


def slopes(heads: int) -> torch.Tensor:
    return torch.linspace(0.02, 0.7, heads)


def sinks(heads: int) -> torch.Tensor:
    return torch.linspace(-3.0, 4.0, heads)


@pytest.mark.parametrize(
    ("dtype", "block_size"),
    [
        (torch.float32, 16),
        (torch.float32, 32),
        (torch.float32, 64),
        (torch.float32, 128),
        (torch.float16, 64),
        (torch.bfloat16, 16),
        (torch.bfloat16, 64),
    ],
    ids=str,
)
def test_ragged_contexts(device, dtype, block_size):
    check(decode_step(RAGGED, head_dim=64, block_size=block_size, dtype=dtype), device)


@pytest.mark.parametrize("head_dim", [16, 64, 80, 96, 112, 128, 256])
def test_every_head_size(device, head_dim):
    dtype = torch.float16 if head_dim in (80, 256) else torch.float32
    check(decode_step([70, 129], head_dim=head_dim, dtype=dtype, seed=head_dim), device)


@pytest.mark.parametrize("group", [*range(1, 17), 24])
def test_every_group_ratio(device, group):
    check(decode_step([70, 5], heads=(2 * group, 2), block_size=64, seed=group), device)


@pytest.mark.parametrize("context", [1, 15, 16, 17, 127, 128, 129])
def test_edges_of_blocks_and_tiles(device, context):
    for block_size in (16, 64):
        check(decode_step([context], block_size=block_size, seed=context), device, programs=3)


@pytest.mark.parametrize("programs", [1, 2, 3, 7, 30])
def test_any_number_of_programs(device, programs):
    """From whole pairs for one program, through parts at both ends, to programs without work."""
    check(decode_step([200, 1, 64, 430], block_size=64, seed=programs), device, programs=programs)


def test_many_parts_are_joined_in_several_rounds(device):
    check(decode_step([1300], heads=(16, 1), head_dim=128, block_size=64), device, programs=21)


@pytest.mark.parametrize(
    ("window", "block_size"), [(1, 64), (17, 16), (64, 64), (100, 16), (100, 64), (1000, 16)]
)
def test_windows(device, window, block_size):
    """Nothing before a window is read: neither its slots nor its entries of the block table."""
    contexts = [1, 200, 64, 131]
    step = decode_step(contexts, block_size=block_size, seed=window)
    features = AttentionFeatures(window=window)
    answer = wanted(step, features=features)
    for row, context in enumerate(contexts):
        gone = max(0, context - window)
        table = step.metadata.block_tables[row]
        for position in range(gone):
            step.cache[table[position // block_size], :, :, position % block_size] = torch.nan
        table[: gone // block_size] = 2**30
    got = run(step, device, features=features, programs=5)
    torch.testing.assert_close(got, answer, rtol=0, atol=TOLERANCE[step.q.dtype])


@pytest.mark.parametrize(
    "features",
    [
        AttentionFeatures(soft_cap=3.0),
        AttentionFeatures(alibi_slopes=slopes(8)),
        AttentionFeatures(sinks=sinks(8)),
        AttentionFeatures(40, 2.0, slopes(8), sinks(8)),
    ],
    ids=["soft cap", "alibi", "sinks", "all"],
)
@pytest.mark.parametrize("programs", [1, 7])
def test_features(device, features, programs):
    """Sinks count once, whether a pair is whole or in parts."""
    step = decode_step([1, 200, 77], heads=(8, 2), block_size=64)
    step.q.mul_(4)
    check(step, device, features=features, programs=programs)


@pytest.mark.parametrize("cache_type", [torch.int8, FLOAT8], ids=str)
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_quantised_caches(device, cache_type, dtype):
    block_size = 16 if dtype is torch.bfloat16 else 64
    step = decode_step(RAGGED, head_dim=64, block_size=block_size, dtype=dtype)
    step, scales = quantised(step, cache_type)
    check(step, device, kv_scales=scales, programs=6)


def test_float8_on_architectures_without_it(device, monkeypatch):
    monkeypatch.setattr(tuning, "architecture", lambda _: 80)
    step, scales = quantised(decode_step(RAGGED, head_dim=64), FLOAT8)
    check(step, device, kv_scales=scales)


@pytest.mark.parametrize("size", [1e-9, 1e-3, 1e4])
def test_quantised_values_of_any_size(device, size):
    """Weights meet values in float16, which would lose small scales and overflow on large ones."""
    step = decode_step([150, 20], head_dim=64, block_size=64, dtype=torch.bfloat16)
    step.cache[:, 1] *= size
    step.q.mul_(1e4)
    step = replace(step, scale=step.scale * 1e-4)
    step, scales = quantised(step, torch.int8)
    answer = wanted(step, kv_scales=scales)
    got = run(step, device, kv_scales=scales, programs=4).float()
    torch.testing.assert_close(got / size, answer / size, rtol=0, atol=2e-2)


@pytest.mark.parametrize("scale", [torch.nan, -torch.nan, torch.inf, 0.0, 1e-40, -2.0])
def test_unusual_scales_of_values_reach_the_output(device, scale):
    """Whatever a slot's scale is, the row shows it as the reference does, and its neighbour not."""
    step, scales = quantised(decode_step([70, 20], head_dim=64, block_size=64), torch.int8)
    block = int(step.metadata.block_tables[0, 1])
    scales[block, 1, :, 3] = torch.copysign(torch.tensor(abs(scale)), torch.tensor(scale))
    answer = wanted(step, kv_scales=scales)
    got = run(step, device, kv_scales=scales, programs=3)
    torch.testing.assert_close(got, answer, rtol=0, atol=5e-6, equal_nan=True)
    assert bool(got[1].isfinite().all())


def test_features_of_a_quantised_cache(device):
    step, scales = quantised(decode_step([200, 70], heads=(8, 2), block_size=64), torch.int8)
    features = AttentionFeatures(90, 2.0, slopes(8), sinks(8))
    check(step, device, features=features, kv_scales=scales, programs=5)


def test_rows_of_many_tokens_and_padding_are_passed_over(device):
    """What is not decode's stays as it was, NaN here; decode rows beside it are right."""
    step = make_step([(3, 90), (1, 150), (70, 70), (1, 1), (1, 64), (1, 80)], block_size=64)
    starts, lens = step.metadata.query_start_loc, step.metadata.seq_lens
    lens[4] = 0  # padding of a captured graph: a token without a context
    starts[6] = starts[5]  # padding of no token
    answer = wanted(replace(step, metadata=replace(step.metadata)))
    got = run(step, device, programs=5)
    for row, (first, last) in enumerate(itertools.pairwise(starts)):
        if row in (1, 3):
            torch.testing.assert_close(got[first:last], answer[first:last], rtol=0, atol=5e-6)
        else:
            assert bool(got[first:last].isnan().all())


def test_a_step_without_decode_rows(device):
    assert bool(run(make_step([(3, 90), (2, 2)]), device).isnan().all())


def test_one_workspace_serves_launch_after_launch(device):
    """Whoever joins a pair leaves its counter as the next layer needs it: at zero."""
    step = decode_step([300, 1, 200], block_size=64)
    work = planned(step, device, programs=7)
    work.build(metadata_on(step, device))
    first = run(step, device, work=work)
    assert not bool(work.scratch.counters[: work.programs].any())
    assert torch.equal(run(step, device, work=work), first)
    torch.testing.assert_close(first, wanted(step), rtol=0, atol=5e-6)


def test_a_row_alone_and_among_neighbours(device):
    """The work is cut otherwise then, so the sums may be rounded otherwise, and no more."""
    contexts = [200, 3, 129]
    step = decode_step(contexts, block_size=64)
    together = run(step, device, programs=5)
    for row in range(len(contexts)):
        one = slice(row, row + 1)
        metadata = replace(
            step.metadata,
            query_start_loc=torch.tensor([0, 1], dtype=torch.int32),
            seq_lens=step.metadata.seq_lens[one],
            block_tables=step.metadata.block_tables[one],
        )
        alone = run(replace(step, q=step.q[one], metadata=metadata), device, programs=5)
        torch.testing.assert_close(alone, together[one], rtol=0, atol=1e-6)


def test_queries_may_be_a_strided_view_of_qkv(device):
    step = decode_step([50, 130], heads=(4, 2))
    wide = torch.full((2, 10, step.q.shape[2]), torch.nan)
    wide[:, 3:7] = step.q
    check(replace(step, q=wide[:, 3:7]), device)


def test_a_pool_that_32_bits_cannot_address(device):
    """The last block lies beyond element 2**31; what lies between is never touched."""
    step, scales = quantised(decode_step([100], heads=(2, 1), head_dim=64, block_size=64), FLOAT8)
    blocks = 2**31 // step.cache[0].numel() + 8
    cache = torch.empty(blocks, *step.cache.shape[1:], dtype=torch.uint8).view(FLOAT8)
    far_scales = torch.empty(blocks, *scales.shape[1:])
    table = step.metadata.block_tables[:, :2]
    far = table + (blocks - 8)
    for old, new in zip(table[0].tolist(), far[0].tolist(), strict=True):
        cache[new], far_scales[new] = step.cache[old], scales[old]
    answer = wanted(step, kv_scales=scales)
    metadata = replace(step.metadata, block_tables=far)
    got = run(replace(step, cache=cache, metadata=metadata), device, kv_scales=far_scales)
    torch.testing.assert_close(got, answer, rtol=0, atol=5e-6)


def test_layers_of_different_windows_share_a_step(device):
    step = decode_step([200, 70], heads=(8, 2), block_size=64)
    step = replace(step, shape=replace(step.shape, windows=(30, 0, 100)))
    metadata = metadata_on(step, device)
    metadata = replace(
        metadata, work=attention.prepare(metadata, step.shape, poisoned_buffer(step, device))
    )
    q, cache = step.q.to(device), step.cache.to(device)
    for window in (0, 30, 0, 100):
        features = AttentionFeatures(window=window)
        got = attention.paged(q, cache, metadata, step.scale, None, features)
        answer = wanted(step, features=features)
        torch.testing.assert_close(got.cpu(), answer, rtol=0, atol=5e-6)
    with pytest.raises(ValueError, match="a layer has window 7"):
        attention.paged(q, cache, metadata, step.scale, None, AttentionFeatures(window=7))


def test_compiled_configurations_cover_what_the_table_holds():
    """Every row of the shipped table is reached by a case of the compile gate."""
    found = {
        (case.num_warps, case.num_stages)
        for arch in (80, 89, 90)
        for case in paged_decode.compile_cases(arch)
    }
    rows = [row.tuning for row in tuning.rows() if row.kernel == "paged_decode"]
    assert {(row.num_warps, row.num_stages) for row in rows} <= found
