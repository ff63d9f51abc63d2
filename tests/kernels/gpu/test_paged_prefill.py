"""Prefill attention against the reference: rows of many tokens over a paged cache full of NaN."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from attention_cases import Step, make_step
from torch import Tensor

from kernels import AttentionFeatures, reference, tuning
from kernels.gpu import prefill_attention

# Triton's interpreter reads the bounds of a loop from arrays of one element.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")

PLAIN = AttentionFeatures()
TOLERANCE = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
SMALL = {"BLOCK_M": 16, "BLOCK_N": 16, "BOXES": 0}


def use(monkeypatch: pytest.MonkeyPatch, **blocks: int) -> None:
    """Every lookup finds this configuration."""
    tuned = tuning.Tuning(SMALL | blocks, 4, 2)
    monkeypatch.setattr(tuning, "lookup", lambda kernel, arch, **facts: tuned)


def on(device: torch.device, step: Step) -> Step:
    meta = step.metadata
    moved = {
        name: getattr(meta, name).to(device)
        for name in ("query_start_loc", "seq_lens", "block_tables", "slot_mapping", "positions")
    }
    return replace(
        step,
        q=step.q.to(device),
        cache=step.cache.to(device),
        metadata=replace(meta, work=None, **moved),
    )


def prefill(
    device: torch.device,
    step: Step,
    features: AttentionFeatures = PLAIN,
    kv_scales: Tensor | None = None,
) -> Tensor:
    """The kernel's result, NaN where it wrote nothing."""
    there = on(device, step)
    out = torch.full_like(there.q, torch.nan)
    moved = replace(
        features,
        alibi_slopes=None if features.alibi_slopes is None else features.alibi_slopes.to(device),
        sinks=None if features.sinks is None else features.sinks.to(device),
    )
    prefill_attention.paged_prefill(
        there.q,
        there.cache,
        there.metadata,
        step.shape,
        step.scale,
        moved,
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


class TestBatchInvariance:
    """A query's bits depend on its row's context alone."""

    def step(self, rows: list[tuple[int, int]], **facts: object) -> Step:
        made = make_step(rows, heads=(2, 1), seed=3, **facts)  # type: ignore[arg-type]
        return replace(made, shape=replace(made.shape, batch_invariant=True))

    FEATURES = (PLAIN, AttentionFeatures(window=21), everything(2, window=21))

    @pytest.mark.parametrize("features", FEATURES, ids=["plain", "window", "all"])
    def test_whole_in_chunks_and_one_by_one(
        self, device: torch.device, monkeypatch: pytest.MonkeyPatch, features: AttentionFeatures
    ) -> None:
        use(monkeypatch)
        self.compare(device, features, 37, (1, 5, 16, 17, 36))

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("features", "block_n"), [*((features, 16) for features in FEATURES), (FEATURES[2], 32)]
    )
    def test_chunks_of_every_size(
        self,
        device: torch.device,
        monkeypatch: pytest.MonkeyPatch,
        features: AttentionFeatures,
        block_n: int,
    ) -> None:
        use(monkeypatch, BLOCK_N=block_n)
        self.compare(device, features, 41, tuple(range(1, 41)))

    def compare(
        self,
        device: torch.device,
        features: AttentionFeatures,
        tokens: int,
        sizes: tuple[int, ...],
    ) -> None:
        whole = self.step([(tokens, tokens)])
        alone = prefill(device, whole, features)
        torch.testing.assert_close(alone, expected(whole, features), atol=2e-5, rtol=2e-5)
        for size in sizes:
            for first in range(0, tokens, size):
                last = min(first + size, tokens)
                chunk = prefill(device, cut(whole, first, last), features)
                assert torch.equal(chunk, alone[first:last]), (size, first)

    def test_neighbours_do_not_matter(
        self, device: torch.device, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        use(monkeypatch)
        rows = [(1, 30), (9, 41), (1, 1), (20, 20)]
        batch = self.step(rows)
        together = prefill(device, batch)
        assert not together.isnan().any()
        start = 0
        for row, (tokens, context) in enumerate(rows):
            meta = batch.metadata
            single = replace(
                meta,
                query_start_loc=torch.tensor([0, tokens], dtype=torch.int32),
                seq_lens=torch.tensor([context], dtype=torch.int32),
                block_tables=meta.block_tables[row : row + 1],
                max_query_len=tokens,
            )
            q = batch.q[start : start + tokens]
            alone = prefill(device, replace(batch, q=q, metadata=single))
            assert torch.equal(alone, together[start : start + tokens])
            start += tokens

    def test_one_configuration_whatever_the_length(
        self, device: torch.device, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen = []
        find = tuning.lookup

        def spy(kernel: str, arch: int, **facts: tuning.Fact) -> tuning.Tuning:
            seen.append(facts)
            return find(kernel, arch, **facts)

        monkeypatch.setattr(tuning, "lookup", spy)
        for rows in ([(1, 9)], [(9, 9)], [(1, 30), (2, 2)]):
            prefill(device, self.step(rows))
        assert seen[0] == seen[1] == seen[2]


def cut(step: Step, first: int, last: int) -> Step:
    """The one row of ``step``, when tokens first : last are its newest."""
    meta = replace(
        step.metadata,
        query_start_loc=torch.tensor([0, last - first], dtype=torch.int32),
        seq_lens=torch.tensor([last], dtype=torch.int32),
        max_query_len=last - first,
        max_seq_len=last,
    )
    return replace(step, q=step.q[first:last], metadata=meta)


def test_a_scale_that_is_not_positive_is_refused(device: torch.device) -> None:
    step = make_step([(2, 2)])
    with pytest.raises(ValueError, match="scale is 0"):
        prefill(device, replace(step, scale=0))
