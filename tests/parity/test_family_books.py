"""Every family's weights and cache as they are counted: the inventory against the tensors of the
checkpoint, and the bytes of a token against what is allocated and what transformers keeps."""

from __future__ import annotations

from collections import Counter
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch

from server.memory.kinds import MemoryKind
from server.plan_cli.capacity import bytes_per_token
from tests.equivalence import harness
from tests.parity.family_checkpoints import CASES, GPT, Case, num_saved, write_case
from tests.plan.plans import plan
from weights import families
from weights.checkpoint.folder import open_checkpoint
from weights.checkpoint.matching import match
from weights.inventory import inventory, num_parameters
from weights.spec import ModelSpec

ALL_CASES = {**CASES, "gpt2": (Case("GPT2Config", base=GPT),)}
BYTES = 4  # of a float32


def first_fast() -> list[Any]:
    """The first case of each family; the others are slow."""
    return [
        pytest.param(
            case,
            id=f"{family}-{index}",
            marks=(pytest.mark.slow,) if index else (),
        )
        for family, cases in ALL_CASES.items()
        for index, case in enumerate(cases)
    ]


def bytes_of_one_token(model: Any) -> int:
    """Keys and values that transformers keeps of one token, in all layers. Its GPT-1 keeps none:
    there it is what its one matrix for queries, keys and values makes. Its newer Falcon keeps a
    key-value head once for each query head that reads it: here each counts once."""
    config = model.config
    if config.model_type == "openai-gpt":
        return BYTES * 2 * config.n_embd * config.n_layer
    with torch.inference_mode():
        cache = model(torch.tensor([[5]]), use_cache=True).past_key_values
    kept = sum(
        one.numel() * one.element_size()
        for layer in cache.layers
        for one in (layer.keys, layer.values)
        if one is not None  # of layers that read another's
    )
    if config.model_type == "falcon" and config.new_decoder_architecture:
        return kept * config.num_kv_heads // config.num_attention_heads
    return kept


def assert_every_tensor_is_in_the_inventory(folder: Path, parameters: int) -> ModelSpec:
    checkpoint = open_checkpoint(folder)
    family = families.resolve(checkpoint.config)
    spec = family.spec(checkpoint.config)
    matching = match(checkpoint, family, spec)
    filled: Counter[str] = Counter()
    for one in matching.placements:
        for piece in one.pieces:
            filled[piece.parameter] += piece.size
    assert filled == Counter({one.name: one.shape[0] for one in inventory(spec)})
    elements = sum(prod(one.entry.shape) for one in matching.placements)
    assert elements == num_parameters(spec) == parameters
    assert len(matching.placements) + len(matching.skipped) == len(checkpoint.tensors)
    return spec


@pytest.mark.parametrize("case", first_fast())
def test_weights_and_cache_are_counted_as_they_are(case: Case, tmp_path: Path) -> None:
    model = write_case(case, tmp_path)
    parameters = num_saved(model)
    spec = assert_every_tensor_is_in_the_inventory(tmp_path, parameters)

    built = harness.built_runner(tmp_path, num_tokens=1024)
    per_token = sum(group.bytes_per_token for group in built.kv.groups)
    assert per_token == bytes_of_one_token(model)
    layers = [layer for group in built.kv.groups for layer in group.layer_ids]
    owners = [layer for layer in range(spec.num_layers) if spec.kv_layer(layer) == layer]
    assert sorted(layers) == owners
    for group in built.kv.groups:
        assert {spec.window(layer) for layer in group.layer_ids} == {group.window or 0}
    held = built.held.by_kind()
    assert held[MemoryKind.KV_CACHE] == built.kv.num_blocks * built.kv.page_bytes
    # Every group's block is one page: so many of them are a block of each.
    assert len(built.kv.groups) * built.kv.page_bytes == per_token * built.kv.block_size
    assert held[MemoryKind.WEIGHTS] == BYTES * parameters

    planned = plan(tmp_path, dtype="float32")
    assert num_parameters(planned.model.spec) == parameters
    assert planned.memory.layout.bytes(MemoryKind.WEIGHTS) == BYTES * parameters
    assert bytes_per_token(planned) == per_token


def test_every_family_has_a_row() -> None:
    assert set(ALL_CASES) == {family.name for family in families.FAMILIES}
