"""The warp-specialised prefill, switched on here, against the reference; and when it is chosen."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from kernels import AttentionFeatures, tuning
from kernels.gpu import specialized_prefill
from tests.kernels.attention_cases import Step, make_step
from tests.kernels.gpu.attention.prefill_steps import PLAIN, expected, prefill

# Triton's interpreter reads the bounds of a loop from arrays of one element.


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> list[str]:
    """Switches the form on, with small tiles on a CPU; grows by one entry a run of it."""
    if tuning.architecture(device) != specialized_prefill.ARCH:
        pytest.skip("this GPU has no such form")
    find, run, seen = tuning.lookup, specialized_prefill.run, list[str]()

    def lookup(kernel: str, arch: int, **facts: tuning.Fact) -> tuning.Tuning:
        if kernel != "paged_prefill_specialized":
            return find(kernel, arch, **facts)
        tokens = 128 if device.type == "cuda" else 32
        return tuning.Tuning({"BLOCK_Q": tokens, "ENABLED": 1}, 4, 3)

    def counted(*arguments: Any) -> None:
        seen.append("run")
        run(*arguments)

    monkeypatch.setattr(tuning, "lookup", lookup)
    monkeypatch.setattr(specialized_prefill, "run", counted)
    return seen


def check(device: torch.device, step: Step, features: AttentionFeatures = PLAIN) -> None:
    want = expected(step, features)
    out = prefill(device, step, features)
    lengths = step.metadata.query_start_loc.diff()
    mine = (lengths > 1).repeat_interleave(lengths)
    assert out[~mine].isnan().all(), "a row of one token was written"
    limit = 2e-3 if step.q.dtype is torch.float16 else 2e-2
    torch.testing.assert_close(out[mine], want[mine], atol=limit, rtol=limit)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_ragged_chunks_behind_prefixes(
    device: torch.device, runs: list[str], head_dim: int, dtype: torch.dtype
) -> None:
    rows = [(40, 40), (1, 70), (7, 150), (2, 3), (1, 1), (64, 128)]
    check(device, make_step(rows, head_dim=head_dim, block_size=64, dtype=dtype, seed=head_dim))
    assert runs == ["run"]


@pytest.mark.parametrize("context", [63, 64, 65, 127, 128, 129])
def test_the_last_block_may_be_any_and_partly_filled(
    device: torch.device, runs: list[str], context: int
) -> None:
    rows = [(3, context), (33, context)]
    facts: dict[str, Any] = {"head_dim": 64, "block_size": 64, "dtype": torch.float16}
    for seed in range(3):  # block 0 comes last in one of them
        check(device, make_step(rows, heads=(1, 1), seed=seed, spare_blocks=0, **facts))


@pytest.mark.parametrize(
    "features",
    [
        AttentionFeatures(window=1),
        AttentionFeatures(window=50),
        AttentionFeatures(window=64, soft_cap=0.8),
    ],
)
def test_windows_and_caps(
    device: torch.device, runs: list[str], features: AttentionFeatures
) -> None:
    rows = [(50, 50), (20, 170)]
    step = make_step(rows, heads=(2, 1), head_dim=64, block_size=64, dtype=torch.float16)
    check(device, step, features)
    assert runs == ["run"]


def test_what_it_cannot_do_goes_the_general_way(device: torch.device, runs: list[str]) -> None:
    facts: dict[str, Any] = {"head_dim": 64, "block_size": 64, "dtype": torch.float16}
    slopes = AttentionFeatures(alibi_slopes=torch.rand(4).to(device))
    prefill(device, make_step([(3, 3)], **facts), slopes)
    prefill(device, make_step([(3, 3)], **(facts | {"block_size": 32})), PLAIN)
    prefill(device, make_step([(3, 3)], **(facts | {"head_dim": 80})), PLAIN)
    prefill(device, make_step([(3, 3)], **(facts | {"dtype": torch.float32})), PLAIN)
    invariant = make_step([(3, 3)], **facts)
    shape = replace(invariant.shape, batch_invariant=True)
    prefill(device, replace(invariant, shape=shape), PLAIN)
    assert runs == []


def test_the_shipped_table_leaves_it_off(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = make_step([(3, 3)], head_dim=64, block_size=64, dtype=torch.float16)
    inputs = (step.q, step.cache, step.metadata, step.shape, PLAIN)
    assert specialized_prefill.chosen(*inputs) is None
