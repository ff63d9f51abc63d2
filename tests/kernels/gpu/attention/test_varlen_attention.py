"""Attention without a cache against the reference: sequences of any length, side by side."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kernels import AttentionFeatures, reference, tuning
from kernels.gpu import varlen_attention

# Triton's interpreter reads the bounds of a loop from arrays of one element.
PLAIN = AttentionFeatures()
TOLERANCE = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
RAGGED = [5, 0, 1, 37, 16]


def use(monkeypatch: pytest.MonkeyPatch, block_m: int = 16, block_n: int = 16) -> None:
    """Every lookup finds this configuration."""
    tuned = tuning.Tuning({"BLOCK_M": block_m, "BLOCK_N": block_n}, 4, 2)
    monkeypatch.setattr(tuning, "lookup", lambda kernel, arch, **facts: tuned)


def draw(
    lengths: list[int],
    heads: tuple[int, int] = (4, 2),
    head_dim: int = 16,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, k and v as views of one tensor, with a NaN token before the first and behind the last."""
    generator = torch.Generator().manual_seed(seed)
    bounds = torch.tensor([0, *lengths]).cumsum(0).int()
    tokens = int(bounds[-1])
    fused = torch.randn(tokens + 2, heads[0] + 2 * heads[1], head_dim, generator=generator)
    fused[0] = fused[-1] = torch.nan
    q, k, v = fused.to(dtype)[1:-1].split((heads[0], heads[1], heads[1]), dim=1)
    return q, k, v, bounds


def check(
    device: torch.device,
    inputs: tuple[Tensor, Tensor, Tensor, Tensor],
    causal: bool,
    features: AttentionFeatures = PLAIN,
    wanted: AttentionFeatures | None = None,
) -> Tensor:
    q, k, v, bounds = inputs
    scale = q.shape[2] ** -0.5
    want = reference.varlen_attention(
        q, k, v, bounds, causal=causal, scale=scale, features=wanted or features
    )
    there = [tensor.to(device) for tensor in inputs]
    moved = replace(
        features,
        alibi_slopes=None if features.alibi_slopes is None else features.alibi_slopes.to(device),
        sinks=None if features.sinks is None else features.sinks.to(device),
    )
    longest = int(bounds.diff().max())
    out = varlen_attention.varlen(*there, longest, causal, scale, moved).cpu()
    limit = TOLERANCE[q.dtype]
    torch.testing.assert_close(out, want, atol=limit, rtol=limit)
    return out


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_shipped_configurations(device: torch.device, dtype: torch.dtype, causal: bool) -> None:
    check(device, draw([40, 3, 130], head_dim=64, dtype=dtype, heads=(2, 1)), causal)


@pytest.mark.parametrize("head_dim", [80, 256])
def test_shipped_configurations_of_wide_heads(device: torch.device, head_dim: int) -> None:
    check(device, draw([40, 70], head_dim=head_dim, dtype=torch.float16, heads=(2, 2)), False)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("heads", [(2, 2), (6, 2), (8, 1)])
def test_ragged_sequences_and_groups(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, heads: tuple[int, int], causal: bool
) -> None:
    use(monkeypatch)
    check(device, draw(RAGGED, heads=heads, seed=heads[0]), causal)


def test_a_group_of_more_heads_than_a_tile_has_lanes(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch)
    check(device, draw([3, 17], heads=(18, 1)), True)


@pytest.mark.parametrize("head_dim", [64, 80, 96, 112, 128, 256])
def test_widths_of_a_head(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, head_dim: int
) -> None:
    use(monkeypatch, block_n=32)
    check(device, draw([9, 41], heads=(2, 1), head_dim=head_dim, seed=head_dim), False)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("length", [15, 16, 17, 31, 32, 33])
def test_edges_of_tiles(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, length: int, causal: bool
) -> None:
    use(monkeypatch)
    check(device, draw([length, length], heads=(1, 1), seed=length), causal)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [1, 15, 16, 17, 500])
def test_windows_reach_both_ways(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, window: int, causal: bool
) -> None:
    use(monkeypatch)
    check(
        device, draw([50, 3], heads=(2, 1), seed=window), causal, AttentionFeatures(window=window)
    )


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [0, 19])
@pytest.mark.parametrize("soft_cap", [0.0, 0.8])
def test_features(
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
    causal: bool,
    window: int,
    soft_cap: float,
) -> None:
    use(monkeypatch)
    generator = torch.Generator().manual_seed(9)
    features = AttentionFeatures(
        window=window,
        soft_cap=soft_cap,
        alibi_slopes=torch.rand(4, generator=generator) * 0.3,
        sinks=torch.randn(4, generator=generator),
    )
    check(device, draw(RAGGED), causal, features)


def test_neighbours_change_no_bit(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch)
    q, k, v, bounds = draw([7, 33, 20])
    together = check(device, (q, k, v, bounds), False)
    for first, last in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        alone = torch.tensor([0, last - first], dtype=torch.int32)
        mine = (q[first:last], k[first:last], v[first:last], alone)
        assert torch.equal(check(device, mine, False), together[first:last])


def test_a_scale_that_is_not_positive_is_refused() -> None:
    q, k, v, bounds = draw([2])
    with pytest.raises(ValueError, match="scale is -1"):
        varlen_attention.varlen(q, k, v, bounds, 2, True, -1.0, PLAIN)
