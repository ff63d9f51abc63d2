"""Native attention over the paged cache against the reference, for every level and cache."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from kernels import AttentionFeatures, alibi_slopes
from kernels.backends import NATIVE_CPU
from kernels.cpu.native.attention import paged
from kernels.dispatch import using
from tests.kernels.attention_cases import PLAIN, Step, free_behind, make_step, run
from tests.kernels.feature_cases import CASES, HEADS, MISTAKES, SINKS, with_large_scores
from tests.kernels.native.native_steps import CACHES, attend, native_step, threads, wanted

pytestmark = pytest.mark.usefixtures("native_level")

# All is in float32 here and in the reference, which reads the same values of the cache.
LIMIT, LARGE_LIMIT = 2e-6, 1e-5
each_cache = pytest.mark.parametrize("cache", CACHES, ids=str)


def check(step: Step, features: AttentionFeatures = PLAIN) -> None:
    """What is behind a window is somebody else's by the time that the kernels run."""
    if features.soft_cap:
        step = with_large_scores(step)
    right = wanted(step, features)
    if features.window:
        free_behind(step, features.window)
    limit = LIMIT if features is PLAIN else LARGE_LIMIT
    torch.testing.assert_close(attend(step, features), right, rtol=0, atol=limit)


@each_cache
@pytest.mark.parametrize("block_size", [1, 16, 64])
def test_decode_chunks_and_prefixes_in_one_batch(block_size: int, cache: torch.dtype) -> None:
    rows = [(1, 1), (1, 130), (40, 40), (7, 71), (1, 513), (20, 600)]
    check(native_step(rows, block_size=block_size, dtype=cache))


@pytest.mark.parametrize("group", [1, 2, 3, 5, 7, 8, 16, 17, 33])
def test_every_group_ratio(group: int) -> None:
    """With more than a unit's queries in a group, and with a number that does not divide them."""
    check(native_step([(1, 90), (5, 33), (1, 64)], heads=(2 * group, 2), seed=group))


@each_cache
@pytest.mark.parametrize("head_dim", [8, 16, 24, 40, 64, 80, 128, 256, 512])
def test_every_head_size(head_dim: int, cache: torch.dtype) -> None:
    check(native_step([(1, 47), (10, 76)], head_dim=head_dim, dtype=cache, seed=head_dim))


@pytest.mark.parametrize("context", [1, 15, 17, 63, 64, 65, 511, 512, 513, 1024, 1025])
def test_contexts_at_the_edges_of_tiles_and_spans(context: int) -> None:
    check(native_step([(1, context)]))
    check(native_step([(1, context), (1, 600), (min(context, 9), context)]))


@pytest.mark.parametrize("tokens", [2, 7, 8, 9, 16, 17, 40])
def test_chunks_at_the_edges_of_units(tokens: int) -> None:
    check(native_step([(tokens, tokens), (tokens, tokens + 450)]))


@each_cache
@pytest.mark.parametrize("name", CASES)
def test_features(name: str, cache: torch.dtype) -> None:
    rows = [(1, 1), (1, 700), (9, 40), (1, 17), (20, 540), (2, 515)]
    check(native_step(rows, heads=HEADS, dtype=cache, features=CASES[name]), CASES[name])


@pytest.mark.parametrize("block_size", [1, 4, 64, 1024])
@pytest.mark.parametrize("window", [1, 31, 64, 65, 512, 513])
def test_windows_at_the_edges_of_blocks_tiles_and_spans(window: int, block_size: int) -> None:
    features = AttentionFeatures(window=window, sinks=SINKS[:4])
    rows = [(1, 1), (1, 17), (1, 530), (7, 71), (9, 560)]
    check(native_step(rows, block_size=block_size, seed=window, features=features), features)


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_what_a_layer_is_told_is_noticed(name: str) -> None:
    case, mistake = MISTAKES[name]
    step = native_step([(1, 700), (9, 40)], heads=HEADS, features=CASES[case])
    step = with_large_scores(step) if CASES[case].soft_cap else step
    off = (attend(step, mistake(CASES[case])) - wanted(step, CASES[case])).abs().max()
    assert float(off) > 10 * LARGE_LIMIT


def test_distances_stay_exact_far_from_the_start() -> None:
    slopes = torch.tensor([0.9, 0.5, 0.01, 1e-4])
    features = AttentionFeatures(alibi_slopes=slopes)
    check(native_step([(1, 5000), (3, 4097)], features=features), features)


@pytest.mark.parametrize("seed", range(8))
def test_random_batches(seed: int) -> None:
    draw = random.Random(seed)
    rows = []
    for _ in range(draw.randint(1, 6)):
        tokens = draw.choice([1, 1, 1, 2, 5, 9, 17])
        rows.append((tokens, tokens + draw.choice([0, 0, 1, 15, 63, 300, 511, 600])))
    kv_heads = draw.choice([1, 2, 3])
    heads = kv_heads * draw.randint(1, 8)
    slopes = draw.choice([None, alibi_slopes(heads)])
    features = AttentionFeatures(draw.choice([0, 0, 70]), draw.choice([0.0, 5.0]), slopes, None)
    step = native_step(
        rows,
        heads=(heads, kv_heads),
        head_dim=draw.choice([16, 32, 64, 80]),
        block_size=draw.choice([1, 2, 16, 64]),
        dtype=draw.choice(CACHES),
        seed=seed,
        features=features,
    )
    with threads(draw.randint(1, 3)):
        check(step, features)


def test_the_public_functions_run_them() -> None:
    with using(NATIVE_CPU):
        step = make_step([(1, 1200), (12, 30)])
        got = run(step)
    torch.testing.assert_close(got, wanted(step), rtol=0, atol=LIMIT)


def test_queries_may_be_a_strided_view_of_qkv() -> None:
    step = native_step([(1, 50), (12, 30)])
    wide = torch.full((step.q.shape[0], step.q.shape[1] + 4, step.q.shape[2]), torch.nan)
    wide[:, : step.q.shape[1]] = step.q
    strided = replace(step, q=wide[:, : step.q.shape[1]])
    assert torch.equal(attend(strided), attend(step))


@each_cache
def test_what_lies_outside_a_context_has_no_influence(cache: torch.dtype) -> None:
    step = native_step([(1, 50), (12, 30), (3, 517)], dtype=cache)
    before = attend(step)
    (step.cache if step.kv_scales is None else step.kv_scales).nan_to_num_(nan=1e30)
    assert torch.equal(attend(step), before)


def test_a_layers_blocks_may_lie_apart_with_those_of_others_between() -> None:
    step = native_step([(1, 50), (12, 30), (3, 517)])
    others = torch.full((step.cache.shape[0], 3, *step.cache.shape[1:]), torch.nan)
    others[:, 1] = step.cache
    apart = replace(step, cache=others[:, 1])
    assert torch.equal(attend(apart), attend(step))


def test_scales_may_lie_apart_as_well() -> None:
    step = native_step([(1, 50), (12, 30), (3, 517)], dtype=torch.int8)
    assert step.kv_scales is not None
    others = torch.full((step.cache.shape[0], 3, *step.cache.shape[1:]), 99, dtype=torch.int8)
    others[:, 1] = step.cache
    scales = torch.full((step.cache.shape[0], 2, *step.cache.shape[1:4]), torch.nan)
    scales[:, 0] = step.kv_scales
    apart = replace(step, cache=others[:, 1], kv_scales=scales[:, 0])
    assert torch.equal(attend(apart), attend(step))


def test_what_cannot_be_read_is_refused() -> None:
    step = native_step([(1, 4)])
    arguments = (step.cache, step.metadata, step.scale, None)
    with pytest.raises(ValueError, match="native kernels compute on float32"):
        paged(step.q.bfloat16(), *arguments)
    with pytest.raises(ValueError, match=r"the cache is in torch.float32, with its scales"):
        paged(step.q, *arguments, kv_scales=torch.ones(step.cache.shape[:4]))
    whole = native_step([(1, 4)], dtype=torch.int8)
    with pytest.raises(ValueError, match=r"the cache is in torch.int8, with no scales"):
        paged(whole.q, whole.cache, whole.metadata, whole.scale, None)
    other = make_step([(1, 4)])
    with pytest.raises(ValueError, match="not made by prepare_attention for native kernels"):
        paged(other.q, other.cache, other.metadata, other.scale, None)


def test_an_empty_step() -> None:
    step = native_step([(1, 4)])
    assert attend(replace(step, q=step.q[:0])).shape == (0, *step.q.shape[1:])
