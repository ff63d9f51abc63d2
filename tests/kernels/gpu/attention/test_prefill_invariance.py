"""Prefill attention in batch-invariant mode."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kernels import AttentionFeatures, tuning
from kernels.gpu.prefill_attention import Facts
from tests.kernels.attention_cases import Step, make_step
from tests.kernels.gpu.attention.prefill_steps import (
    PLAIN,
    SMALL,
    everything,
    expected,
    prefill,
    use,
)

# Triton's interpreter reads the bounds of a loop from arrays of one element.


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
        """In the interpreter, those on either side of a tile or half of one."""
        use(monkeypatch, BLOCK_N=block_n)
        some = (2, 3, 7, 8, 15, 31, 32, 33, 40)
        self.compare(device, features, 41, some if device.type == "cpu" else tuple(range(1, 41)))

    @pytest.mark.parametrize("features", FEATURES[:2], ids=["plain", "window"])
    def test_tiles_that_depend_on_the_chunk_are_seen(
        self, device: torch.device, monkeypatch: pytest.MonkeyPatch, features: AttentionFeatures
    ) -> None:
        """The mistake that this mode is against: fewer keys at a time for a short chunk."""

        def by_length(facts: Facts, arch: int, max_query_len: int) -> tuning.Tuning:
            wide = SMALL | {"BLOCK_N": 32 if max_query_len > 16 else 16}
            return tuning.Tuning(wide, 4, 2)

        monkeypatch.setattr(Facts, "lookup", by_length)
        with pytest.raises(AssertionError, match=r"^\(16, 0\)|^\(16, 16\)"):
            self.compare(device, features, 37, (16,))

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
