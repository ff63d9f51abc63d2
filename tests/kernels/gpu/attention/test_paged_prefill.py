"""Prefill attention against the reference: rows of many tokens over a paged cache full of NaN."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kernels import AttentionFeatures
from kernels.gpu import prefill_attention
from tests.kernels.attention_cases import make_step
from tests.kernels.gpu.attention.prefill_steps import (
    check,
    everything,
    expected,
    prefill,
    quantise,
    use,
)

# Triton's interpreter reads the bounds of a loop from arrays of one element.
RAGGED = [(5, 5), (1, 40), (17, 60), (2, 2), (1, 1), (19, 53)]


class TestShippedConfigurations:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    def test_ragged_rows(self, device: torch.device, dtype: torch.dtype) -> None:
        rows = [(40, 40), (1, 70), (7, 100), (2, 3), (1, 1), (20, 200)]
        check(device, make_step(rows, head_dim=64, block_size=64, dtype=dtype, seed=1))

    @pytest.mark.parametrize("block_size", [16, 128])
    def test_blocks_of_other_sizes(self, device: torch.device, block_size: int) -> None:
        rows = [(40, 200), (90, 90)]
        check(
            device,
            make_step(rows, head_dim=64, block_size=block_size, dtype=torch.float16, seed=2),
        )

    @pytest.mark.parametrize("head_dim", [80, 256])
    def test_wide_heads(self, device: torch.device, head_dim: int) -> None:
        rows = [(20, 90), (30, 30)]
        check(
            device, make_step(rows, head_dim=head_dim, block_size=64, dtype=torch.float16, seed=3)
        )

    @pytest.mark.parametrize("stored", [torch.float8_e4m3fn, torch.int8])
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_quantised_caches(
        self, device: torch.device, stored: torch.dtype, dtype: torch.dtype
    ) -> None:
        step = make_step([(20, 90), (1, 9), (9, 9)], head_dim=64, block_size=64, dtype=dtype)
        step, scales = quantise(step, stored)
        check(device, step, everything(4, window=30), scales, tolerance=2e-2)


class TestAgainstReference:
    @pytest.mark.parametrize(
        ("block_size", "boxes"), [(16, 0), (32, 0), (64, 0), (128, 0), (32, 1), (64, 1)]
    )
    def test_ragged_chunks_behind_prefixes(
        self, device: torch.device, monkeypatch: pytest.MonkeyPatch, block_size: int, boxes: int
    ) -> None:
        use(monkeypatch, BOXES=boxes, BLOCK_N=32)
        check(device, make_step(RAGGED, block_size=block_size, seed=block_size))

    @pytest.mark.parametrize("heads", [(1, 1), (3, 1), (4, 1), (10, 2), (7, 1), (8, 1), (16, 1)])
    def test_groups(
        self, device: torch.device, monkeypatch: pytest.MonkeyPatch, heads: tuple[int, int]
    ) -> None:
        use(monkeypatch)
        check(device, make_step([(5, 5), (9, 33), (1, 3)], heads=heads, seed=heads[0]))

    def test_a_group_of_more_heads_than_a_tile_has_lanes(
        self, device: torch.device, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        use(monkeypatch)
        check(device, make_step([(3, 3), (2, 20)], heads=(35, 1)), everything(35))

    @pytest.mark.parametrize(
        ("head_dim", "boxes"),
        [(64, 0), (80, 0), (96, 0), (112, 0), (128, 0), (256, 0), (80, 1), (128, 1)],
    )
    def test_widths_of_a_head(
        self, device: torch.device, monkeypatch: pytest.MonkeyPatch, head_dim: int, boxes: int
    ) -> None:
        use(monkeypatch, BOXES=boxes)
        check(device, make_step([(6, 6), (5, 37)], head_dim=head_dim, seed=head_dim))

    @pytest.mark.parametrize("context", [15, 16, 17, 31, 32, 33, 48])
    def test_edges_of_blocks_and_tiles(
        self, device: torch.device, monkeypatch: pytest.MonkeyPatch, context: int
    ) -> None:
        use(monkeypatch)
        rows = [(tokens, context) for tokens in (2, 7, 8, 9, context)]
        check(device, make_step(rows, heads=(2, 1), seed=context))

    @pytest.mark.parametrize(
        ("window", "boxes"), [(1, 0), (15, 0), (16, 1), (17, 0), (30, 1), (500, 0)]
    )
    def test_windows(
        self, device: torch.device, monkeypatch: pytest.MonkeyPatch, window: int, boxes: int
    ) -> None:
        use(monkeypatch, BOXES=boxes)
        check(device, make_step(RAGGED, seed=window), AttentionFeatures(window=window))

    def test_blocks_behind_a_window_may_be_gone(
        self, device: torch.device, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        use(monkeypatch, BLOCK_N=32)
        features = AttentionFeatures(window=20)
        step = make_step([(4, 120), (20, 90)], seed=5)
        want = expected(step, features)
        for row, (tokens, context) in enumerate([(4, 120), (20, 90)]):
            oldest = context - tokens - features.window + 1
            gone = step.metadata.block_tables[row, : oldest // 16]
            step.cache[gone.long()] = torch.nan
            gone.fill_(2**30)
        check(device, step, features, want=want)

    @pytest.mark.parametrize(
        "features",
        [
            AttentionFeatures(soft_cap=0.7),
            replace(everything(4), sinks=None),
            replace(everything(4), alibi_slopes=None),
            replace(everything(4, window=19), alibi_slopes=None),
            everything(4, window=23, soft_cap=1.5),
        ],
        ids=["cap", "alibi", "sinks", "sinks-window", "all"],
    )
    def test_features(
        self,
        device: torch.device,
        monkeypatch: pytest.MonkeyPatch,
        features: AttentionFeatures,
    ) -> None:
        use(monkeypatch)
        check(device, make_step(RAGGED, seed=11), features)

    @pytest.mark.parametrize("boxes", [0, 1])
    @pytest.mark.parametrize("stored", [torch.float8_e4m3fn, torch.int8])
    def test_quantised_caches(
        self,
        device: torch.device,
        monkeypatch: pytest.MonkeyPatch,
        stored: torch.dtype,
        boxes: int,
    ) -> None:
        use(monkeypatch, BOXES=boxes)
        step, scales = quantise(make_step([(5, 40), (1, 3), (9, 9)], seed=4), stored)
        check(device, step, kv_scales=scales)

    def test_float8_by_its_bits(
        self, device: torch.device, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        use(monkeypatch)
        monkeypatch.setattr(prefill_attention, "NATIVE_FLOAT8", 1000)
        step, scales = quantise(make_step([(5, 40), (9, 9)], seed=4), torch.float8_e4m3fn)
        check(device, step, kv_scales=scales)

    def test_queries_and_results_may_be_strided(
        self, device: torch.device, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        use(monkeypatch)
        step = make_step([(5, 20), (3, 3)])
        fused = torch.randn(8, 8, 16)
        fused[:, :4] = step.q
        check(device, replace(step, q=fused[:, :4]))

    def test_rows_without_tokens_are_padding(
        self, device: torch.device, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        use(monkeypatch)
        step = make_step([(5, 20), (3, 3)])
        want = expected(step)
        meta = step.metadata
        padded = replace(
            meta,
            query_start_loc=torch.cat((meta.query_start_loc, torch.tensor([8, 8]))).int(),
            seq_lens=torch.cat((meta.seq_lens, torch.tensor([0, 0]))).int(),
            block_tables=torch.cat((meta.block_tables, torch.full((2, 4), 2**30))).int(),
        )
        check(device, replace(step, metadata=padded), want=want)


def test_a_scale_that_is_not_positive_is_refused(device: torch.device) -> None:
    step = make_step([(2, 2)])
    with pytest.raises(ValueError, match="scale is 0"):
        prefill(device, replace(step, scale=0))
