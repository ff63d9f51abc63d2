"""Paged and cache-free attention against the reference, over shapes that servers meet."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch

import kernels
from kernels import reference
from tests.kernels.attention_cases import make_step, run

# The reference works in float32 on the same stored values, so these bound the backend's own error.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def check(step) -> None:
    got = run(step)
    wanted = reference.paged_attention(
        step.q.float(), step.cache.float(), step.metadata, scale=step.scale
    )
    assert got.dtype is step.q.dtype
    torch.testing.assert_close(got.float(), wanted, rtol=0, atol=TOLERANCE[step.q.dtype])


@pytest.mark.parametrize("block_size", [1, 2, 4, 16, 64])
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_decode_chunks_and_prefixes_in_one_batch(block_size, dtype):
    rows = [(1, 1), (1, 130), (40, 40), (7, 71), (1, 513), (150, 600)]
    check(make_step(rows, block_size=block_size, dtype=dtype))


@pytest.mark.parametrize("group", range(1, 9))
def test_every_group_ratio(group):
    check(make_step([(1, 90), (20, 33), (1, 64)], heads=(2 * group, 2), seed=group))


@pytest.mark.parametrize("head_dim", [16, 32, 64, 80, 96, 128])
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_every_head_size(head_dim, dtype):
    check(make_step([(1, 47), (10, 26)], head_dim=head_dim, dtype=dtype, seed=head_dim))


@pytest.mark.parametrize("context", [1, 15, 16, 17, 31, 32, 511, 512, 513, 1023, 1024, 1025])
def test_contexts_at_the_edges_of_blocks_and_key_tiles(context):
    """Alone and beside others, so that the edge falls inside a batch's segments too."""
    check(make_step([(1, context)]))
    check(make_step([(1, context), (1, 600), (min(context, 9), context)]))


@pytest.mark.parametrize("tokens", [2, 8, 9, 32, 33, 128, 129, 200])
def test_chunks_at_the_edges_of_query_tiles(tokens):
    check(make_step([(tokens, tokens), (tokens, tokens + 450)]))


def test_more_items_than_one_wave_holds():
    """Scratch for one item's keys is above the gather budget, so each item is its own wave."""
    step = make_step([(1, 40), (1, 700), (1, 520)], heads=(64, 64), head_dim=128)
    listed, _ = step.metadata.work.list_for(0)
    assert len(listed.waves) > 1
    check(step)


def test_a_huge_pool_of_which_little_is_used():
    check(make_step([(1, 100), (5, 60)], block_size=1, spare_blocks=100_000))


@pytest.mark.parametrize("seed", range(12))
def test_random_batches(seed):
    draw = random.Random(seed)
    rows = []
    for _ in range(draw.randint(1, 7)):
        tokens = draw.choice([1, 1, 1, 2, 5, 9, 33, 64, 129])
        rows.append((tokens, tokens + draw.choice([0, 0, 1, 15, 16, 63, 300, 511, 600])))
    kv_heads = draw.choice([1, 2, 3])
    check(
        make_step(
            rows,
            heads=(kv_heads * draw.randint(1, 8), kv_heads),
            head_dim=draw.choice([16, 32, 64, 80]),
            block_size=draw.choice([1, 2, 4, 16, 64]),
            dtype=draw.choice(list(TOLERANCE)),
            seed=seed,
        )
    )


def test_queries_may_be_a_strided_view_of_qkv():
    step = make_step([(1, 50), (12, 30)])
    wide = torch.randn(step.q.shape[0], step.q.shape[1] + 4, step.q.shape[2])
    wide[:, : step.q.shape[1]] = step.q
    strided = wide[:, : step.q.shape[1]]
    got = kernels.paged_attention(strided, step.cache, step.metadata, scale=step.scale)
    assert torch.equal(got, run(step))


def test_what_lies_outside_a_context_has_no_influence():
    """Every slot that no row of the batch owns is changed, and the answer is the same bits."""
    step = make_step([(1, 50), (12, 30), (3, 517)])
    before = run(step)
    step.cache.nan_to_num_(nan=1e30)
    assert torch.equal(run(step), before)


def test_a_layers_blocks_may_lie_apart_with_those_of_others_between():
    """The middle of three layers in one place: the same bits, and nothing else is touched."""
    step = make_step([(1, 50), (12, 30), (3, 517)])
    others = torch.full((step.cache.shape[0], 3, *step.cache.shape[1:]), torch.nan)
    apart = others[:, 1]
    apart.copy_(step.cache)
    rows = step.metadata
    metadata = kernels.prepare_attention(
        query_start_loc=rows.query_start_loc,
        seq_lens=rows.seq_lens,
        block_tables=rows.block_tables,
        slot_mapping=rows.slot_mapping,
        positions=rows.positions,
        shape=dataclasses.replace(step.shape, block_rows=3 * 2 * step.shape.num_kv_heads),
    )
    got = kernels.paged_attention(step.q, apart, metadata, scale=step.scale)
    assert torch.equal(got, run(step))
    with pytest.raises(ValueError, match="blocks lie"):
        kernels.paged_attention(step.q, apart, rows, scale=step.scale)
    new = torch.randn(rows.slot_mapping.shape[0], *step.k.shape[1:])
    for cache in (apart, step.cache):
        kernels.rotary_store_kv(step.q.clone(), new.clone(), new, cache, rows.slot_mapping)
    assert torch.equal(apart.nan_to_num(7.0), step.cache.nan_to_num(7.0))
    assert others[:, 0].isnan().all() and others[:, 2].isnan().all()


def test_an_empty_step():
    step = make_step([(1, 4)])
    nothing = torch.empty(0, dtype=torch.int64)
    metadata = kernels.prepare_attention(
        query_start_loc=torch.zeros(1, dtype=torch.int32),
        seq_lens=torch.empty(0, dtype=torch.int32),
        block_tables=torch.empty(0, 2, dtype=torch.int32),
        slot_mapping=nothing,
        positions=nothing,
        shape=step.shape,
    )
    assert kernels.paged_attention(step.q[:0], step.cache, metadata, scale=1.0).shape[0] == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_row_alone_and_among_neighbours(dtype):
    rows = [(1, 700), (130, 400), (1, 33), (9, 520), (1, 512), (2, 2)]
    step = make_step(rows, dtype=dtype)
    together = run(step)
    starts = step.metadata.query_start_loc.tolist()
    for row, (tokens, context) in enumerate(rows):
        part = slice(starts[row], starts[row + 1])
        metadata = kernels.prepare_attention(
            query_start_loc=torch.tensor([0, tokens], dtype=torch.int32),
            seq_lens=torch.tensor([context], dtype=torch.int32),
            block_tables=step.metadata.block_tables[row : row + 1],
            slot_mapping=step.metadata.slot_mapping[part],
            positions=step.metadata.positions[part],
            shape=step.shape,
        )
        alone = kernels.paged_attention(step.q[part], step.cache, metadata, scale=step.scale)
        limit = 1e-6 if dtype is torch.float32 else 2e-2
        assert (alone - together[part]).abs().max() <= limit


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_sequences_without_a_cache(causal, dtype):
    torch.manual_seed(0)
    bounds = torch.tensor([0, 1, 1, 40, 41, 250, 800], dtype=torch.int32)
    qkv = torch.randn(800, 8, 32).to(dtype)
    q, k, v = qkv[:, :4], qkv[:, 4:6], qkv[:, 6:]
    got = kernels.varlen_attention(q, k, v, bounds, causal=causal, scale=0.2)
    wanted = reference.varlen_attention(
        q.float(), k.float(), v.float(), bounds, causal=causal, scale=0.2
    )
    torch.testing.assert_close(got.float(), wanted, rtol=0, atol=TOLERANCE[dtype])
    nothing = torch.zeros(1, dtype=torch.int32)
    empty = kernels.varlen_attention(q[:0], k[:0], v[:0], nothing, causal=causal, scale=1.0)
    assert empty.shape == (0, 4, 32)
