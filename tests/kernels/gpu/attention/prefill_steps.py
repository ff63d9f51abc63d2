"""Prefill attention run on steps with caches full of NaN, and what the reference makes of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kernels import AttentionFeatures, reference, tuning
from kernels.gpu import prefill_attention
from tests.kernels.attention_cases import Step
from tests.kernels.gpu.attention.decode_steps import features_on, metadata_on

PLAIN = AttentionFeatures()
TOLERANCE = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
SMALL = {"BLOCK_M": 16, "BLOCK_N": 16, "BOXES": 0}


def use(monkeypatch: pytest.MonkeyPatch, **blocks: int) -> None:
    """Every lookup finds this configuration."""
    tuned = tuning.Tuning(SMALL | blocks, 4, 2)
    monkeypatch.setattr(tuning, "lookup", lambda kernel, arch, **facts: tuned)


def prefill(
    device: torch.device,
    step: Step,
    features: AttentionFeatures = PLAIN,
    kv_scales: Tensor | None = None,
) -> Tensor:
    """The kernel's result, NaN where it wrote nothing."""
    q = step.q.to(device)
    out = torch.full_like(q, torch.nan)
    prefill_attention.paged_prefill(
        q,
        step.cache.to(device),
        metadata_on(step, device),
        step.shape,
        step.scale,
        features_on(features, device),
        None if kv_scales is None else kv_scales.to(device),
        out,
    )
    return out.cpu()


def expected(
    step: Step, features: AttentionFeatures = PLAIN, kv_scales: Tensor | None = None
) -> Tensor:
    return reference.paged_attention(
        step.q, step.cache, step.metadata, scale=step.scale, features=features, kv_scales=kv_scales
    )


def owned(step: Step) -> Tensor:
    """[T] bool: the tokens of rows that prefill takes."""
    starts = step.metadata.query_start_loc
    lengths = starts.diff()
    least = 1 if step.shape.batch_invariant else 2
    return (lengths >= least).repeat_interleave(lengths)


def check(
    device: torch.device,
    step: Step,
    features: AttentionFeatures = PLAIN,
    kv_scales: Tensor | None = None,
    want: Tensor | None = None,
    tolerance: float | None = None,
) -> None:
    out = prefill(device, step, features, kv_scales)
    want = expected(step, features, kv_scales) if want is None else want
    mine = owned(step)
    assert out[~mine].isnan().all(), "a row of one token was written"
    limit = TOLERANCE[step.q.dtype] if tolerance is None else tolerance
    torch.testing.assert_close(out[mine], want[mine], atol=limit, rtol=limit)


def quantise(step: Step, dtype: torch.dtype) -> tuple[Step, Tensor]:
    """The step over a quantised cache; scales and numbers of slots never written stay poison."""
    blocks, _, heads, block_size, _ = step.cache.shape
    scales = torch.full((blocks, 2, heads, block_size), torch.nan)
    poison = 0x7F if dtype is torch.float8_e4m3fn else -128  # NaN in float8
    numbers = torch.full(step.cache.shape, poison, dtype=torch.int8).view(dtype)
    for place in (~step.cache.isnan().any(dim=-1)).nonzero().tolist():
        block, half, head, slot = place
        stored, scale = reference.quantise_heads(step.cache[block, half, head, slot][None], dtype)
        numbers[block, half, head, slot] = stored[0]
        scales[block, half, head, slot] = scale[0]
    return replace(step, cache=numbers), scales


def everything(heads: int, **numbers: float) -> AttentionFeatures:
    """ALiBi and sinks of that many heads, with the other features as given."""
    generator = torch.Generator().manual_seed(7)
    return AttentionFeatures(
        window=int(numbers.get("window", 0)),
        soft_cap=numbers.get("soft_cap", 0.0),
        alibi_slopes=torch.rand(heads, generator=generator) * 0.3,
        sinks=torch.randn(heads, generator=generator),
    )
