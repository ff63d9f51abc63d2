"""Windows, soft caps, ALiBi and sinks on a CPU against the reference, alone and together."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import kernels
from kernels import AttentionFeatures, reference
from kernels.cpu.attention_source import AttentionWork
from tests.kernels.attention_cases import Step, free_behind, make_step, run
from tests.kernels.feature_cases import (
    BLOCK_SIZE,
    CASES,
    HEADS,
    SINKS,
    SLOPES,
    with_large_scores,
)
from tests.kernels.planted_attention_bugs import BUGS

# In float32 a product of queries that long is rounded to about this.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
# Each case in float32 and one of the 16-bit types, in turn; all features together in every type.
HALVES = (torch.bfloat16, torch.float16)
TYPED = [
    *((name, torch.float32) for name in CASES),
    *((name, HALVES[place % 2]) for place, name in enumerate(CASES)),
    ("everything", HALVES[len(CASES) % 2]),
]
ROWS = [(1, 1), (1, 700), (9, 40), (1, 17), (130, 600), (2, 515), (1, 530)]


def check(step: Step, features: AttentionFeatures) -> None:
    """What is behind a window is somebody else's by the time that the backend runs."""
    if features.soft_cap:
        step = with_large_scores(step)
    wanted = reference.paged_attention(
        step.q.float(), step.cache.float(), step.metadata, scale=step.scale, features=features
    )
    if features.window:
        free_behind(step, features.window)
    got = run(step, features=features)
    assert got.dtype is step.q.dtype
    torch.testing.assert_close(got.float(), wanted, rtol=0, atol=TOLERANCE[step.q.dtype])


@pytest.mark.parametrize(("name", "dtype"), TYPED, ids=str)
def test_decode_chunks_and_prefixes_in_one_batch(name, dtype):
    features = CASES[name]
    check(make_step(ROWS, heads=HEADS, dtype=dtype, features=features), features)


@pytest.mark.parametrize("block_size", [1, 4, 64, 1024])
@pytest.mark.parametrize("window", [1, 16, 31, 64, 65, 512, 513])
def test_windows_at_the_edges_of_blocks_and_key_tiles(window, block_size):
    features = AttentionFeatures(window=window, sinks=SINKS[:4])
    rows = [(1, 1), (1, 17), (1, 530), (7, 71), (33, 560)]
    check(make_step(rows, block_size=block_size, seed=window, features=features), features)


@pytest.mark.parametrize("group", [1, 2, 5, 8])
@pytest.mark.parametrize("head_dim", [16, 80, 128])
def test_every_group_and_head_size(group, head_dim):
    heads = 2 * group
    features = AttentionFeatures(70, 5.0, torch.rand(heads), torch.randn(heads))
    rows = [(1, 90), (20, 133), (1, 64)]
    check(make_step(rows, heads=(heads, 2), head_dim=head_dim, features=features), features)


def test_distances_stay_exact_far_from_the_start():
    """Slopes near one, and contexts at which float16 has no odd number."""
    features = AttentionFeatures(alibi_slopes=torch.tensor([0.9, 0.5, 0.01, 1e-4]))
    check(make_step([(1, 5000), (3, 4097)], features=features), features)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("name", "dtype"), TYPED, ids=str)
def test_sequences_without_a_cache(name, dtype, causal):
    features = CASES[name]
    torch.manual_seed(0)
    ends = [0, 1, 1, 40, 41, 175] if dtype is not torch.float32 else [0, 1, 1, 18, 550]
    bounds = torch.tensor(ends, dtype=torch.int32)
    heads = (HEADS[0], HEADS[1], HEADS[1])
    q, k, v = (torch.randn(ends[-1], count, 32).to(dtype) for count in heads)
    if features.soft_cap:
        q = q * 16
    how = {"causal": causal, "scale": 0.2, "features": features}
    got = kernels.varlen_attention(q, k, v, bounds, **how)
    wanted = reference.varlen_attention(q.float(), k.float(), v.float(), bounds, **how)
    # ALiBi lifts keys ahead of the query by as much as hundreds, and scores are rounded to that.
    ahead = features.alibi_slopes is not None and not causal
    atol = max(TOLERANCE[dtype], 1e-4 if ahead else 0.0)
    torch.testing.assert_close(got.float(), wanted, rtol=0, atol=atol)


@pytest.mark.parametrize("name", ["window, ALiBi", "window, soft cap", "everything"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_row_alone_and_among_neighbours(name, dtype):
    features = CASES[name]
    step = make_step(ROWS, heads=HEADS, dtype=dtype, features=features)
    together = run(step, features=features)
    starts = step.metadata.query_start_loc.tolist()
    for row, (tokens, context) in enumerate(ROWS):
        part = slice(starts[row], starts[row + 1])
        metadata = kernels.prepare_attention(
            query_start_loc=torch.tensor([0, tokens], dtype=torch.int32),
            seq_lens=torch.tensor([context], dtype=torch.int32),
            block_tables=step.metadata.block_tables[row : row + 1],
            slot_mapping=step.metadata.slot_mapping[part],
            positions=step.metadata.positions[part],
            shape=step.shape,
        )
        alone = kernels.paged_attention(
            step.q[part], step.cache, metadata, scale=step.scale, features=features
        )
        limit = 2e-6 if dtype is torch.float32 else 2e-2
        assert (alone - together[part]).abs().max() <= limit


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_planted_bug_is_caught(bug, monkeypatch):
    features = CASES[bug.case]
    step = make_step([(1, 1), (1, 530), (9, 90), (130, 300)], heads=HEADS, features=features)
    bug.apply(monkeypatch)
    with pytest.raises((AssertionError, IndexError), match=r"not close|out of (range|bounds)"):
        check(step, features)


def gathered_tokens(work: AttentionWork, window: int) -> int:
    """Keys that are read, one head's."""
    listed, _ = work.list_for(window)
    segments = [segment for wave in listed.waves for segment in wave.segments]
    return sum((segment.last - segment.first) * segment.width for segment in segments)


@pytest.mark.parametrize("window", [1, 128, 1000])
def test_a_decode_step_reads_about_a_window_of_keys(window):
    features = AttentionFeatures(window=window)
    for context in (1001, 4000, 9003):
        step = make_step([(1, context)] * 3, features=features)
        read = gathered_tokens(step.metadata.work, window)
        assert 3 * min(window, context) <= read <= 3 * (window + 2 * step.shape.key_step)


def test_layers_with_different_windows_share_a_step():
    step = make_step([(1, 300), (9, 100)])
    step = replace(step, shape=replace(step.shape, windows=(30, 0)))
    with pytest.raises(ValueError, match="a layer has window 30; the shape"):
        run(step, features=AttentionFeatures(window=30))
    given = step.metadata
    rows = {"query_start_loc": given.query_start_loc, "seq_lens": given.seq_lens}
    tokens = {"slot_mapping": given.slot_mapping, "positions": given.positions}
    first = kernels.prepare_attention(
        **rows, **tokens, block_tables=given.block_tables, shape=step.shape
    )
    for window in (30, 0):
        features = AttentionFeatures(window=window)
        got = run(replace(step, metadata=first), features=features)
        wanted = reference.paged_attention(
            step.q, step.cache, given, scale=step.scale, features=features
        )
        torch.testing.assert_close(got, wanted, rtol=0, atol=4e-6)


def test_groups_of_a_step_have_tables_of_their_own_and_one_list():
    """The second group's cache lies elsewhere, and what is behind its window is not its own."""
    features = AttentionFeatures(window=30)
    step = make_step([(1, 300), (9, 100)], features=features)
    wanted = run(step, features=features)
    given = step.metadata
    moved = torch.randperm(len(step.cache), generator=torch.Generator().manual_seed(1))
    cache = torch.empty_like(step.cache)
    cache[moved] = step.cache
    tables = given.block_tables.clone()
    held = tables < len(cache)
    tables[held] = moved[tables[held].long()].int()
    how = {"slot_mapping": given.slot_mapping, "positions": given.positions, "shape": step.shape}
    rows = {"query_start_loc": given.query_start_loc, "seq_lens": given.seq_lens}
    second = kernels.prepare_attention(**rows, **how, block_tables=tables, like=given)
    other = replace(step, cache=cache, metadata=second)
    free_behind(other, features.window)
    assert torch.equal(run(other, features=features), wanted)
    assert second.work.list_for(30)[0] is given.work.list_for(30)[0]
    rows["seq_lens"] = rows["seq_lens"].clone()
    with pytest.raises(ValueError, match="like is the metadata of other rows"):
        kernels.prepare_attention(**rows, **how, block_tables=tables, like=given)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (AttentionFeatures(soft_cap=2.0), "a layer has a soft cap; the shape"),
        (AttentionFeatures(alibi_slopes=SLOPES[:4]), "a layer has ALiBi; the shape"),
        (AttentionFeatures(window=-1), "neither may be negative"),
        (AttentionFeatures(sinks=SINKS), r"features.sinks has shape \[6\]; it must be \[4\]"),
    ],
)
def test_features_that_the_shape_did_not_tell_of_are_refused(features, message):
    with pytest.raises(ValueError, match=message):
        run(make_step([(3, 20)], block_size=BLOCK_SIZE), features=features)
