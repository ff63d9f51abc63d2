"""Layers with heads of two sizes share the pages of one pool: where each one's part lies, what a
page costs, and that an answer changes where two parts are one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from kernels.types import PLAIN
from server.engine.engine_config import CacheConfig
from server.execution import layer_parts
from server.execution.kv_pool import KVPool
from server.execution.layer_parts import Attention
from server.memory.kv_groups import cache_part, kv_cache_spec, layer_groups, layer_kv_bytes, pages
from server.memory.layout import build_layout
from tests.engine_configs import engine_config
from tests.execution import stepping
from tests.parity import oracle
from tests.parity.family_checkpoints import CASES, VOCAB, write_case
from weights.families import resolve
from weights.presets import find_preset
from weights.spec import ModelSpec

PROMPT = np.random.default_rng(3).integers(3, VOCAB, size=60).tolist()
GEMMA4 = resolve({"architectures": ["Gemma4ForCausalLM"], "model_type": "gemma4_text"})
FACTS = {
    **{"architectures": ["Gemma4ForCausalLM"], "model_type": "gemma4_text", "vocab_size": 512},
    **{"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "head_dim": 16},
    **{"hidden_size_per_layer_input": 0, "sliding_window": 24},
}


def model(**facts: object) -> ModelSpec:
    return GEMMA4.spec({**FACTS, **facts})


MODELS = {
    "wide heads that see all": model(
        num_hidden_layers=12, num_key_value_heads=1, global_head_dim=32
    ),
    "few of them": model(
        num_hidden_layers=12,
        num_key_value_heads=4,
        global_head_dim=32,
        num_global_key_value_heads=1,
        attention_k_eq_v=True,
    ),
    "no whole multiple of each other": model(
        num_hidden_layers=6, num_key_value_heads=2, global_head_dim=48
    ),
    "pages that are not full": model(
        num_hidden_layers=6, num_key_value_heads=1, global_head_dim=32
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_each_layer_has_a_part_of_its_groups_pages_for_itself(name: str) -> None:
    spec, config = MODELS[name], engine_config(num_blocks=6, block_size=16)
    buffer = build_layout(spec, config).buffer("kv_cache")
    cache = torch.full(buffer.shape, torch.nan)
    assert buffer.nbytes == kv_cache_spec(spec, config.cache).total_bytes
    for layers_of_group in layer_groups(spec):
        cache.fill_(torch.nan)
        parts = [_part(spec, layer, cache) for layer in layers_of_group]
        for layer, part in zip(layers_of_group, parts, strict=True):
            assert part[0].numel() == spec.kv_elements(layer) * 16
            assert part.isnan().all(), "nothing of another layer lies there"
            part.fill_(layer)
        for layer, part in zip(layers_of_group, parts, strict=True):
            assert (part == layer).all()
    assert sorted(sum(layer_groups(spec), ())) == list(range(spec.num_layers))


@pytest.mark.parametrize("name", MODELS)
def test_each_layer_has_scales_for_its_heads_alone(name: str) -> None:
    spec, config = MODELS[name], engine_config(num_blocks=6, block_size=16, kv_format="int8")
    layout = build_layout(spec, config)
    numbers = torch.zeros(layout.buffer("kv_cache").shape, dtype=torch.int8)
    scales = torch.empty(layout.buffer("kv_scales").shape)
    pool = KVPool(numbers, scales)
    for layers_of_group in layer_groups(spec):
        scales.fill_(torch.nan)
        parts = []
        for layer in layers_of_group:
            heads = spec.layer_attention(layer)
            layer_numbers, layer_scales = pool.layer(cache_part(spec, layer), heads)
            assert layer_scales is not None
            assert layer_scales.shape == layer_numbers.shape[:4]
            assert layer_scales.isnan().all(), "nothing of another layer lies there"
            layer_scales.fill_(layer)
            parts.append((layer, layer_scales))
        assert all(bool((part == layer).all()) for layer, part in parts)


def test_blocks_are_copied_and_poisoned_with_their_scales() -> None:
    numbers = torch.arange(2 * 5 * 2 * 3 * 4 * 8).remainder(101).to(torch.int8)
    numbers = numbers.view(2, 5, 2, 3, 4, 8)
    scales = torch.rand(numbers.shape[:5])
    pool = KVPool(numbers.clone(), scales.clone())
    sources, destinations = torch.tensor([1, 4]), torch.tensor([3, 0])
    pool.copy_blocks(sources, destinations)
    assert pool.scales is not None
    for copied, before in ((pool.numbers, numbers), (pool.scales, scales)):
        wanted = before.clone()
        wanted[:, destinations] = before[:, sources]
        assert torch.equal(copied, wanted)
    pool.poison(torch.tensor([2]))
    assert bool(pool.scales[:, 2].isnan().all())
    assert not bool(pool.scales[:, [0, 1, 3, 4]].isnan().any())
    pool.poison()
    assert bool(pool.scales.isnan().all())


def _part(spec: ModelSpec, layer: int, cache: torch.Tensor) -> torch.Tensor:
    heads = spec.layer_attention(layer)
    part = cache_part(spec, layer)
    return Attention(part, PLAIN, heads, spec.norm, None, False).cache_layer(KVPool(cache))[0]


def test_a_page_of_gemma_4_is_full() -> None:
    spec = find_preset("gemma-4-31b").spec
    assert pages(spec) == (5, 2 * 16 * 256)
    whole, *windowed = layer_groups(spec)
    assert whole == tuple(range(5, 60, 6))
    assert [len(group) for group in windowed] == [5] * 10
    kv = kv_cache_spec(spec, CacheConfig(block_size=16, num_blocks=8, format="bf16"))
    of_a_token = 50 * 2 * 2 * 16 * 256 + 10 * 2 * 2 * 4 * 512
    assert sum(group.bytes_per_token for group in kv.groups) == of_a_token
    assert sum(layer_kv_bytes(spec, layer, "bf16") for layer in range(60)) == of_a_token


@pytest.mark.parametrize(
    ("name", "owners", "a_group"), [("gemma-4-e2b", 15, {3, 6}), ("gemma-4-e4b", 24, {2, 4})]
)
def test_layers_that_read_others_keep_nothing(name: str, owners: int, a_group: set[int]) -> None:
    spec = find_preset(name).spec
    groups = layer_groups(spec)
    assert {len(group) for group in groups} == a_group
    assert sorted(sum(groups, ())) == list(range(owners))
    last = {
        window: max(i for i in range(owners) if spec.window(i) == window) for window in (0, 512)
    }
    for layer in range(owners, spec.num_layers):
        assert cache_part(spec, layer) == cache_part(spec, last[spec.window(layer)])
        assert list(spec.layer_attention(layer).projections) == ["query"]


def test_a_page_that_its_group_does_not_fill_costs_as_much() -> None:
    spec = MODELS["pages that are not full"]  # five narrow layers in three groups, one wide one
    kv = kv_cache_spec(spec, CacheConfig(block_size=16, num_blocks=8, format="f32"))
    assert [len(group.layer_ids) for group in kv.groups] == [1, 2, 2, 1]
    assert {group.bytes_per_token for group in kv.groups} == {4 * 2 * 32}


def test_two_layers_in_one_part_answer_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a later step reads: a step's own keys are read before another layer writes there."""
    theirs = oracle.greedy(write_case(CASES["gemma4"][0], tmp_path), PROMPT, 24)

    def greedy() -> list[int]:
        return stepping.greedy(stepping.built(tmp_path, max_model_len=256).runner, PROMPT, 24)

    assert greedy() == theirs
    real = layer_parts.cache_part
    monkeypatch.setattr(
        layer_parts, "cache_part", lambda *of: replace(real(*of), elements_before=0)
    )
    assert greedy() != theirs
