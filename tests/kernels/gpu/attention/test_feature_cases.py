"""Decode, prefill and attention without a cache serve the features that a CPU serves, and the
mistakes that are noticed there are noticed here."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from kernels import AttentionFeatures
from tests.kernels.attention_cases import Step, free_behind, make_step
from tests.kernels.feature_cases import CASES, HEADS, MISTAKES, with_large_scores
from tests.kernels.gpu.attention import decode_steps, prefill_steps, test_varlen_attention
from tests.kernels.gpu.attention.prefill_steps import use

# Triton 3.6's interpreter turns arrays of one element into numbers, of which NumPy warns.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")

Check = Callable[[torch.device, AttentionFeatures, AttentionFeatures], None]
LARGE_SCORES = 1e-4  # a product of queries that long is rounded to about this


def step_with(rows: list[tuple[int, int]], features: AttentionFeatures) -> Step:
    step = make_step(rows, heads=HEADS, features=features)
    return with_large_scores(step) if features.soft_cap else step


def decode(device: torch.device, features: AttentionFeatures, told: AttentionFeatures) -> None:
    step = step_with([(1, 1), (1, 17), (1, 40), (1, 131)], features)
    want = decode_steps.wanted(step, features=features)
    if features.window and told is features:
        free_behind(step, features.window)
    got = decode_steps.run(step, device, features=told, programs=5)
    torch.testing.assert_close(got, want, rtol=0, atol=LARGE_SCORES)


def prefill(device: torch.device, features: AttentionFeatures, told: AttentionFeatures) -> None:
    step = step_with([(9, 9), (5, 40), (17, 70)], features)
    want = prefill_steps.expected(step, features)
    if features.window and told is features:
        free_behind(step, features.window)
    prefill_steps.check(device, step, told, want=want, tolerance=LARGE_SCORES)


def without_a_cache(
    device: torch.device, features: AttentionFeatures, told: AttentionFeatures
) -> None:
    q, k, v, bounds = test_varlen_attention.draw([20, 1, 50], heads=HEADS)
    q = q * 16 if features.soft_cap else q
    test_varlen_attention.check(device, (q, k, v, bounds), True, told, wanted=features)


CHECKS: list[Check] = [decode, prefill, without_a_cache]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_every_feature(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, check: Check, name: str
) -> None:
    if check is not decode:
        use(monkeypatch)
    check(device, CASES[name], CASES[name])


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_every_mistake_is_caught(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, check: Check, mistake: str
) -> None:
    if check is not decode:
        use(monkeypatch)
    name, wrong = MISTAKES[mistake]
    with pytest.raises(AssertionError, match="not close"):
        check(device, CASES[name], wrong(CASES[name]))
