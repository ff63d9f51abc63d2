"""Books and counts of a model with windows: closed while several hundred requests share a small
pool, are found in the prefix cache and preempted, and back where they were afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from server.memory.kinds import MemoryKind
from tests.memory.accounting import figures_of
from tests.memory.test_books import MIB, assert_close_to_plan, assert_closes
from tests.parity.family_checkpoints import SMALL_EMBEDDING, Case, write_case

REQUESTS = 240
FULL, SLIDING = "full_attention", "sliding_attention"
# One layer in three sees all: three groups of two layers, whose windows are shorter than prompts.
MODEL = Case(
    "Gemma3TextConfig",
    {
        "hidden_size": 128,
        "head_dim": 32,
        "num_hidden_layers": 6,
        "layer_types": [SLIDING, SLIDING, FULL] * 2,
        "sliding_window": 48,
        "query_pre_attn_scalar": 2,
        "max_position_embeddings": 512,
    },
    SMALL_EMBEDDING,
)
POOL = 2 * MIB  # of 128 pages, where 16 sequences want 300


@pytest.mark.slow
def test_books_and_counts_of_windows_close_under_load_and_after(tmp_path: Path) -> None:
    write_case(MODEL, tmp_path)
    found = figures_of("tests.memory.window_books_probe", tmp_path, POOL, REQUESTS, timeout=500)
    for wave in ("wave 1", "wave 2"):
        assert found[wave]["finished"] == REQUESTS // 2
        assert found[wave]["unequal"] == []
        assert found[wave]["hits"] > 1000
        assert_closes(found[wave]["load"])
        assert_close_to_plan(found["plan"], found[wave]["load"])
        assert_cache_adds_up(found[wave]["load"])
    idle = found["idle"]
    for after in ("after 1", "after 2"):
        assert_closes(found[after]["books"])
        assert_cache_adds_up(found[after]["books"])
        assert_nothing_is_left(found[after]["counts"])
        for kind in (MemoryKind.WEIGHTS, MemoryKind.KV_CACHE, MemoryKind.IO, MemoryKind.WORKSPACE):
            assert found[after]["books"][kind] == idle["books"][kind] == found["plan"][kind], kind
    preempted = [found[after]["counts"]["preemptions"] for after in ("after 1", "after 2")]
    assert 0 < preempted[0] <= preempted[1]


def assert_cache_adds_up(books: dict[str, int]) -> None:
    parts = ("active", "cached", "tail_waste", "free")
    assert sum(books[f"kv_cache.{part}"] for part in parts) == books["kv_cache"]


def assert_nothing_is_left(counts: dict[str, Any]) -> None:
    """No block is held for a request, and every other one can be had."""
    assert counts["blocks_cached"] + counts["blocks_free"] == counts["blocks_total"]
    assert counts["blocks_cached"] > 0
    for name in (
        *("requests_running", "requests_waiting", "sequences_running", "sequences_waiting"),
        *("sequences_preempted", "waiting_tokens", "blocks_active", "blocks_reserved"),
        *("kv_tokens_reserved", "kv_tokens_filled", "failed_steps"),
    ):
        assert counts[name] == 0, name
