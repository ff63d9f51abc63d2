"""KV arithmetic, layer by layer: windows, shared heads, several ranks, quantised caches."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from server.engine.engine_config import CacheConfig
from server.engine.kv_cache_manager import KVCacheManager
from server.memory.kv_groups import kv_cache_spec, layer_kv_bytes
from server.memory.planner.planner import size_memory
from server.plan_cli.capacity import at_length, by_length, largest_max_model_len
from server.plan_cli.split import memory_split
from tests.plan.plans import plan
from weights.presets import find_preset, read_presets
from weights.spec import ModelSpec


def layers_of(spec: ModelSpec, tokens: int, block: int) -> int:
    """Tokens that the blocks of all layers have room for, counted one layer after the other."""
    total = 0
    for layer in range(spec.num_layers):
        window = spec.window(layer)
        seen = tokens
        if window:
            # Wherever in a block the window begins, it reaches into so many blocks.
            seen = min(
                tokens,
                max((start + window - 1) // block - start // block + 1 for start in range(block))
                * block,
            )
        total += math.ceil(seen / block) * block
    return total


@pytest.mark.parametrize("block", [16, 64])
@pytest.mark.parametrize(
    "name", ["llama-3.1-8b", "mistral-7b", "gemma-2-9b", "gemma-3-1b", "gemma-3-4b", "gemma-3-27b"]
)
def test_a_sequence_takes_what_its_layers_take(name: str, block: int) -> None:
    spec = find_preset(name).spec
    kv = kv_cache_spec(spec, CacheConfig(block, 1, "bf16"))
    assert len({group.bytes_per_block for group in kv.groups}) == 1  # one pool of equal pages
    assert sorted(n for group in kv.groups for n in group.layer_ids) == list(range(spec.num_layers))
    token = 2 * spec.attention.num_kv_heads * spec.attention.head_dim * 2
    for tokens in (1, block, 511, 513, 1024, 4097, 20_000):
        expected = layers_of(spec, tokens, block) * token
        assert kv.blocks_of(tokens) * kv.page_bytes == expected


def test_a_window_holds_no_more_than_itself_and_a_block() -> None:
    spec = find_preset("mistral-7b").spec
    kv = kv_cache_spec(spec, CacheConfig(64, 1, "bf16"))
    held = kv.blocks_of(32768) * 64
    assert 4096 <= held <= 4096 + 64
    naive = kv_cache_spec(replace(spec, windows=()), CacheConfig(64, 1, "bf16"))
    assert naive.blocks_of(32768) * 64 == 32768


@pytest.mark.parametrize("name", ["gemma-3-4b", "mistral-7b", "llama-3.1-8b"])
def test_the_smallest_pool_holds_a_window_and_a_chunk_as_the_engine_counts_them(name: str) -> None:
    made = plan(name).memory
    kv, sizes = made.kv, made.config.scheduler
    length, chunk = sizes.max_model_len, sizes.max_num_batched_tokens
    least = kv.blocks_at_once(1, length, chunk)
    engine = KVCacheManager(replace(kv, num_blocks=least), max_chunk=chunk, prefix_caching=True)
    assert engine.blocks_for(length) == least
    assert engine.max_tokens_alone() >= min(length, least * kv.block_size)
    assert replace(kv, num_blocks=least).sequences_at_once(length, chunk) == 1
    assert replace(kv, num_blocks=least - 1).sequences_at_once(length, chunk) < 1
    windows = any(group.window is not None for group in kv.groups)
    assert (least > kv.blocks_of(length)) == (windows and chunk > 1)


def test_published_bytes_of_a_token() -> None:
    """All layers, 16 bits: 128 KiB for Llama-3-8B, 4.5 MiB for GPT-3, 512 KiB for Llama-2-7B."""
    for name, expected in (
        ("llama-3-8b", 128 << 10),
        ("gpt-3", 4608 << 10),
        ("llama-2-7b", 512 << 10),
        ("palm-540b", 118 * 2 * 256 * 2),
        ("qwen3-235b-a22b", 94 * 2 * 4 * 128 * 2),
    ):
        spec = find_preset(name).spec
        assert spec.num_layers * layer_kv_bytes(spec, 0, "bf16") == expected


def test_a_quantised_cache_has_a_scale_for_each_heads_key_and_value() -> None:
    spec = find_preset("llama-3-8b").spec
    assert layer_kv_bytes(spec, 0, "fp8") == 2 * 8 * (128 + 4)
    narrow, wide = plan("llama-3-8b", kv="fp8"), plan("llama-3-8b")
    ratio = narrow.memory.concurrent_sequences / wide.memory.concurrent_sequences
    assert ratio == pytest.approx(2 * 128 / 132, rel=0.001)
    assert narrow.memory.kinds["kv_cache"] == pytest.approx(wide.memory.kinds["kv_cache"], rel=1e-3)


def test_the_layout_and_the_cache_agree_on_the_pools_bytes() -> None:
    for name in ("llama-3-8b", "gemma-3-4b", "mistral-7b"):
        for kv in (None, "int8"):
            made = plan(name, kv=kv).memory
            assert made.kinds["kv_cache"] == made.kv.total_bytes


def test_ranks_share_the_cache_and_copy_what_does_not_divide() -> None:
    token = {
        ranks: plan("llama-3.1-8b", ranks=ranks).memory.kv.page_bytes for ranks in (1, 2, 8, 16)
    }
    assert token[1] == 2 * token[2] == 8 * token[8]
    assert token[16] == token[8]  # 8 heads for 16 ranks: each is there twice
    palm = [plan("palm-540b", ranks=ranks).memory.kv.page_bytes for ranks in (8, 16)]
    assert palm[0] == palm[1]


def test_weights_of_a_rank_are_its_share() -> None:
    one, four = (plan("llama-3.1-8b", ranks=ranks).memory.kinds["weights"] for ranks in (1, 4))
    norms = 266_240 * 2
    assert four == (one - norms) // 4 + norms


def test_the_table_of_lengths_fills_the_pool() -> None:
    made = plan("llama-3.1-8b", "l40s").memory
    lines = by_length(made)
    assert [line.length for line in lines] == [512, 2048, 8192, 32768, 131072]
    for line in lines:
        assert line.held * line.bytes_each <= made.kinds["kv_cache"]
        assert (line.held + 1) * line.bytes_each > made.kinds["kv_cache"]
    assert at_length(made, 1).bytes_each == made.kv.page_bytes


@pytest.mark.parametrize(("name", "device"), [("llama-3.1-8b", "l4"), ("gemma-2-9b", "24GiB")])
def test_the_longest_length_fits_and_a_block_more_does_not(name: str, device: str) -> None:
    made = plan(name, device)
    length = largest_max_model_len(made)
    available = made.target.placement.available
    size_memory(made.model.spec, replace(made.args, max_model_len=length), available)
    if length < made.model.spec.max_positions:
        assert not plan(name, device, max_model_len=str(length + 64)).fits


DEVICES = ("h200", "24GiB", "cpu")
# Each preset on one of the devices, in turn; on the other two it is the sweep's.
PRESETS_ON_DEVICES = [
    pytest.param(name, device, marks=[pytest.mark.sweep] if (place + turn) % 3 else [])
    for place, name in enumerate(read_presets())
    for turn, device in enumerate(DEVICES)
]


@pytest.mark.parametrize(("name", "device"), PRESETS_ON_DEVICES)
def test_every_preset_is_planned_and_the_kinds_add_up(name: str, device: str) -> None:
    made = plan(name, device)
    split = memory_split(made)
    assert sum(split.values()) == made.target.total_bytes
    assert (split["free"] >= 0) == made.fits
    assert made.fits or len(made.changes) == 2
    for change in made.changes:
        size_memory(made.model.spec, change.args, change.available_bytes)
