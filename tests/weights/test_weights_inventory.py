"""The inventory and the census against published figures."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from weights import families
from weights.census import Census, Count, census
from weights.formats import FORMATS, from_safetensors, from_torch_name, get_format, tensor_bytes
from weights.inventory import Component, Split, inventory, num_parameters
from weights.spec import ModelSpec
from weights.synthetic.tiny_specs import tiny_gpt2, tiny_llama


def gpt2(width: int, layers: int, heads: int, positions: int, *, tied: bool = True) -> ModelSpec:
    config: dict[str, Any] = {
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": 50257,
        "n_embd": width,
        "n_layer": layers,
        "n_head": heads,
        "n_positions": positions,
        "tie_word_embeddings": tied,
    }
    return families.resolve(config).spec(config)


def llama(**changes: Any) -> ModelSpec:
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        **changes,
    }
    return families.resolve(config).spec(config)


def matrices(counts: Census) -> dict[str, Count]:
    return {name.value: count for name, count in counts.components.items() if count.matrices}


def test_the_census_of_gpt3_is_the_published_one() -> None:
    counts = census(gpt2(12288, 96, 96, 2048, tied=False))
    assert matrices(counts) == {
        "embedding": Count(1, 617_558_016),
        "key": Count(9_216, 14_495_514_624),
        "query": Count(9_216, 14_495_514_624),
        "value": Count(9_216, 14_495_514_624),
        "output": Count(96, 14_495_514_624),
        "up": Count(96, 57_982_058_496),
        "down": Count(96, 57_982_058_496),
        "unembedding": Count(1, 617_558_016),
    }
    assert counts.matrices == 27_938
    assert counts.matrix_parameters == 175_181_291_520


def test_what_is_no_matrix_has_lines_of_its_own() -> None:
    counts = census(gpt2(12288, 96, 96, 2048, tied=False))
    assert counts.components[Component.POSITION] == Count(0, 2048 * 12288)
    assert counts.components[Component.NORM] == Count(0, (2 * 96 + 1) * 2 * 12288)
    assert counts.components[Component.BIAS] == Count(0, 96 * 9 * 12288)
    assert counts.parameters == num_parameters(gpt2(12288, 96, 96, 2048, tied=False))


@pytest.mark.parametrize(
    ("spec", "parameters"),
    [
        (gpt2(768, 12, 12, 1024), 124_439_808),
        (gpt2(1600, 48, 25, 1024), 1_557_611_200),
        (llama(), 6_738_415_616),
        (
            llama(
                hidden_size=8192,
                intermediate_size=28672,
                num_hidden_layers=80,
                num_attention_heads=64,
                num_key_value_heads=8,
            ),
            68_976_648_192,
        ),
        (
            llama(
                vocab_size=128256,
                hidden_size=2048,
                intermediate_size=8192,
                num_hidden_layers=16,
                num_key_value_heads=8,
                tie_word_embeddings=True,
            ),
            1_235_814_400,
        ),
    ],
    ids=["gpt2", "gpt2-1.5B", "llama-7B", "llama-2-70B", "llama-3.2-1B"],
)
def test_published_parameter_counts(spec: ModelSpec, parameters: int) -> None:
    assert num_parameters(spec) == parameters


def test_every_parameter_has_one_name_and_tied_weights_are_one_parameter() -> None:
    tied, untied = (inventory(tiny_llama(tied=flag)) for flag in (True, False))
    names = [parameter.name for parameter in untied]
    assert len(set(names)) == len(names)
    assert {p.name for p in untied} - {p.name for p in tied} == {"unembedding.weight"}


def test_grouped_heads_shape_keys_and_values() -> None:
    spec = tiny_llama(num_query_heads=6, num_kv_heads=2, head_dim=8, hidden_size=40)
    shapes = {parameter.name: parameter.shape for parameter in inventory(spec)}
    assert shapes["layers.0.attention.query.weight"] == (48, 40)
    assert shapes["layers.0.attention.key.weight"] == (16, 40)
    assert shapes["layers.0.attention.output.weight"] == (40, 48)
    assert census(spec).components[Component.KEY].matrices == 2 * spec.num_layers


def test_splits_over_ranks() -> None:
    splits = {parameter.name: parameter.split for parameter in inventory(tiny_gpt2(tied=False))}
    assert splits["embedding.weight"] is Split.VOCABULARY
    assert splits["unembedding.weight"] is Split.VOCABULARY
    assert splits["layers.0.attention.query.bias"] is Split.HEADS
    assert splits["layers.0.attention.output.weight"] is Split.COLUMNS
    assert splits["layers.0.attention.output.bias"] is Split.REPLICATED
    assert splits["layers.0.mlp.up.bias"] is Split.ROWS
    assert splits["layers.0.attention_norm.weight"] is Split.REPLICATED


def test_formats_know_their_bytes_and_their_other_names() -> None:
    assert [tensor_bytes((3, 5), name) for name in FORMATS] == [60, 30, 30]
    assert tensor_bytes((), "f32") == 4
    assert tensor_bytes((0, 7), "f32") == 0
    assert [from_safetensors(name) for name in ("BF16", "F16", "I8")] == ["bf16", "f16", None]
    assert from_torch_name("torch.bfloat16") == from_torch_name("bfloat16") == "bf16"
    with pytest.raises(ValueError, match="known: f32, bf16, f16"):
        get_format("int3")


def test_what_plans_before_loading_needs_no_torch() -> None:
    modules = (
        "spec families inventory census formats checkpoint.folder checkpoint.matching"
        " loading.fusion synthetic.tiny_specs"
    )
    program = (
        "import importlib, sys\n"
        f"for name in {modules.split()!r}: importlib.import_module('weights.' + name)\n"
        "print(sorted({'torch', 'numpy', 'safetensors'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
