"""A query's attention is the same bits alone and in any batch, chunk, pool and layout of blocks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import kernels
from kernels import AttentionFeatures
from tests.kernels.attention_cases import PLAIN, free_behind
from tests.kernels.feature_cases import CASES, HEADS
from tests.kernels.native.native_steps import CACHES, attend, native_step, prepared, threads

pytestmark = pytest.mark.usefixtures("native_level")

ROWS = [(1, 700), (21, 400), (1, 33), (9, 520), (1, 1536), (2, 2)]
FEATURES = {"plain": PLAIN, **{name: CASES[name] for name in ("window, ALiBi", "everything")}}
each_feature = pytest.mark.parametrize("features", FEATURES.values(), ids=FEATURES)


@each_feature
@pytest.mark.parametrize("cache", CACHES, ids=str)
def test_a_row_alone_and_among_neighbours(cache: torch.dtype, features: AttentionFeatures) -> None:
    step = native_step(ROWS, heads=HEADS, dtype=cache, features=features)
    together = attend(step, features)
    starts = step.metadata.query_start_loc.tolist()
    for row in range(len(ROWS)):
        part = slice(starts[row], starts[row + 1])
        alone = prepared(step, slice(row, row + 1), part)
        for shared in (True, False):
            assert torch.equal(attend(alone, features, shared=shared), together[part])


@each_feature
@pytest.mark.parametrize("cache", [torch.float32, torch.int8], ids=str)
@pytest.mark.parametrize("size", [1, 3, 8, 16])
def test_a_token_alone_and_in_chunks(
    size: int, cache: torch.dtype, features: AttentionFeatures
) -> None:
    """Each chunk's window is its own, and what is behind it is gone by then."""
    step = native_step([(40, 560)], heads=HEADS, features=features, dtype=cache)
    whole = attend(step, features)
    for start in range(0, 40, size):
        part = slice(start, min(start + size, 40))
        chunk = prepared(step, slice(0, 1), part)
        if features.window:
            tables = chunk.metadata.block_tables.clone()
            metadata = replace(chunk.metadata, block_tables=tables)
            scales = None if chunk.kv_scales is None else chunk.kv_scales.clone()
            chunk = replace(chunk, cache=chunk.cache.clone(), kv_scales=scales, metadata=metadata)
            free_behind(chunk, features.window)
        assert torch.equal(attend(chunk, features), whole[part])


@each_feature
@pytest.mark.parametrize("cache", [torch.float32, torch.int8], ids=str)
@pytest.mark.parametrize("rows", [ROWS, [(1, 1536)], [(1, 1100), (1, 5)], [(3, 2100)]], ids=str)
def test_any_number_of_threads_and_shared_contexts_or_none(
    rows: list[tuple[int, int]], cache: torch.dtype, features: AttentionFeatures
) -> None:
    step = native_step(rows, heads=(3, 1), features=_first_heads(features, 3), dtype=cache)
    mine = _first_heads(features, 3)
    with threads(1):
        right = attend(step, mine, shared=False)
    for count in (1, 2, 3):
        for shared in (True, False):
            with threads(count):
                assert torch.equal(attend(step, mine, shared=shared), right), (count, shared)


def _first_heads(features: AttentionFeatures, heads: int) -> AttentionFeatures:
    slopes, sinks = features.alibi_slopes, features.sinks
    return replace(
        features,
        alibi_slopes=None if slopes is None else slopes[:heads],
        sinks=None if sinks is None else sinks[:heads],
    )


def test_blocks_of_any_size_hold_the_same_context() -> None:
    rows = [(5, 700), (1, 90)]
    first = native_step(rows, block_size=1)
    right = attend(first)
    for size in (16, 64, 1024):
        step = native_step(rows, block_size=size)
        at, slots = step.metadata.block_tables, []
        for row, (_, context) in enumerate(rows):
            where = torch.arange(context)
            slots.append(at[row, where // size].long() * size + where % size)
        k = first.k.clone()
        kernels.rotary_store_kv(k.clone(), k, first.v, step.cache, torch.cat(slots))
        assert torch.equal(attend(replace(step, q=first.q)), right)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["query", "key", "value"])
def test_what_is_not_finite_stays_in_its_row(where: str, bad: float, shared: bool) -> None:
    """A key that is infinite is one here of a score that is, not of one that is -inf."""
    step = native_step([(3, 90), (1, 1200), (2, 70)])
    step.q[3, :, 2] = step.q[3, :, 2].abs()
    before = attend(step, shared=shared)
    if where == "query":
        step.q[3, :, 2] = bad
    else:
        table, block = step.metadata.block_tables[1], step.cache.shape[3]
        step.cache[int(table[600 // block]), int(where == "value"), :, 600 % block, 2] = bad
    after = attend(step, shared=shared)
    assert torch.equal(after[:3], before[:3])
    assert torch.equal(after[4:], before[4:])
    assert not bool(after[3].isfinite().all(dim=1).any())


@pytest.mark.parametrize("where", ["key", "value"])
def test_a_scale_that_is_no_number_stays_in_its_row(where: str) -> None:
    """As a head that was not finite when it was stored leaves one."""
    step = native_step([(3, 90), (1, 1200), (2, 70)], dtype=torch.int8)
    assert step.kv_scales is not None
    before = attend(step)
    table, block = step.metadata.block_tables[1], step.cache.shape[3]
    step.kv_scales[int(table[600 // block]), int(where == "value"), :, 600 % block] = torch.nan
    after = attend(step)
    assert torch.equal(after[:3], before[:3])
    assert torch.equal(after[4:], before[4:])
    assert not bool(after[3].isfinite().any())
