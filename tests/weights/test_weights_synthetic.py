"""Random checkpoints: real folders for transformers, and sharp enough to show a wrong mask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.parity import oracle
from tests.weights.folders import read_parts
from weights import families
from weights.checkpoint.folder import open_checkpoint
from weights.inventory import num_parameters
from weights.spec import Activation, ModelSpec, RopeScaling, RopeSpec
from weights.synthetic.checkpoint import SPECS, write_checkpoint, write_tokenizer
from weights.synthetic.tiny_specs import tiny_bloom, tiny_gpt2, tiny_llama

SHARP = {
    "llama": tiny_llama(),
    "llama-tied": tiny_llama(tied=True),
    "llama-one-layer-one-kv-head": tiny_llama(num_layers=1, num_kv_heads=1, tied=True),
    "llama-biased": tiny_llama(attention_bias=True, mlp_bias=True, activation=Activation.RELU),
    "llama-yarn": tiny_llama(
        rope=RopeSpec(scaling=RopeScaling.YARN, factor=4.0, original_max_positions=128)
    ),
    "gpt2": tiny_gpt2(),
    "gpt2-untied": tiny_gpt2(tied=False),
    "gpt2-deep": tiny_gpt2(num_layers=8, num_heads=8),
    "bloom": tiny_bloom(),
    "bloom-untied": tiny_bloom(tied=False, num_heads=8),
}


@pytest.mark.parametrize("spec", SHARP.values(), ids=SHARP)
@pytest.mark.parametrize("seed", [0, 1])
def test_attention_is_sharp_and_greedy_output_varied(
    tmp_path: Path, spec: ModelSpec, seed: int
) -> None:
    write_checkpoint(spec, tmp_path, seed=seed)
    model = oracle.load(tmp_path)
    prompt = [(37 * index + seed) % spec.vocab_size for index in range(3, 15)]
    output = oracle.greedy(model, prompt, 64)
    assert len(set(output)) >= 16
    assert oracle.relative_entropy(model, prompt + output) < 0.6


def test_plain_weights_are_not_sharp(tmp_path: Path) -> None:
    """So the measure above can fail."""
    write_checkpoint(tiny_gpt2(), tmp_path, seed=0, sharp=False)
    model = oracle.load(tmp_path)
    assert oracle.relative_entropy(model, list(range(3, 60))) > 0.9
    assert len(set(oracle.greedy(model, [5, 6, 7], 64))) < 16


@pytest.mark.parametrize("family", SPECS)
@pytest.mark.parametrize("format", ["f32", "bf16", "f16"])
def test_transformers_finds_every_weight_of_a_sharded_folder(
    tmp_path: Path, family: str, format: str
) -> None:
    from transformers import AutoModelForCausalLM

    spec = SPECS[family]()
    write_checkpoint(spec, tmp_path, seed=3, format=format, shards=4)
    auto: Any = AutoModelForCausalLM
    model, info = auto.from_pretrained(tmp_path, dtype="auto", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    assert sum(parameter.numel() for parameter in model.parameters()) == num_parameters(spec)
    assert model.generation_config.eos_token_id == 2
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.parameter_format == format
    assert families.resolve(checkpoint.config).spec(checkpoint.config).parameter_dtype == format


def test_values_depend_on_the_seed_and_the_name_alone(tmp_path: Path) -> None:
    spec = tiny_llama(num_layers=2)
    for name, seed, shards in (("a", 1, 1), ("b", 1, 1), ("c", 2, 1), ("d", 1, 3)):
        write_checkpoint(spec, tmp_path / name, seed=seed, shards=shards)
    one, again, other = (
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("a", "b", "c")
    )
    assert one == again
    assert one != other
    header, data = read_parts(tmp_path / "d" / "model-00001-of-00003.safetensors")
    first = header["model.embed_tokens.weight"]["data_offsets"][1]
    whole_header, whole = read_parts(tmp_path / "a" / "model.safetensors")
    assert whole_header["model.embed_tokens.weight"]["data_offsets"][0] == 0
    assert data[:first] == whole[:first]


def test_the_data_can_be_read_by_the_safetensors_library(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    spec = tiny_gpt2(num_layers=1)
    write_checkpoint(spec, tmp_path, seed=1, format="bf16")
    tensors = load_file(tmp_path / "model.safetensors")
    assert sum(tensor.numel() for tensor in tensors.values()) == num_parameters(spec)
    assert tensors["transformer.wte.weight"].dtype == torch.bfloat16


@pytest.mark.parametrize("shards", [0, 10_000])
def test_an_impossible_number_of_shards_is_an_error(tmp_path: Path, shards: int) -> None:
    with pytest.raises(ValueError, match="shards must lie in"):
        write_checkpoint(tiny_llama(), tmp_path, seed=1, shards=shards)


TEXTS = (
    "the cat in the hat",
    "深度学习是",
    "émoji 🦜\u200d🔥, tab\tnewline\n\n  spaces",
    "\x00\x7f",
    "",
)


@pytest.mark.parametrize("vocab_size", [259, 300, 1000])
def test_the_tokenizer_writes_any_text(tmp_path: Path, vocab_size: int) -> None:
    from tokenizers import Tokenizer

    write_tokenizer(tmp_path, vocab_size)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == vocab_size
    for text in TEXTS:
        ids = tokenizer.encode(text).ids
        assert tokenizer.decode(ids) == text
        assert all(3 <= token_id < vocab_size for token_id in ids)
    assert tokenizer.decode(list(range(3, vocab_size))) != ""


def test_ids_3_to_258_are_the_bytes_in_order(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    write_tokenizer(tmp_path, 300)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.decode([3 + byte for byte in "深".encode()]) == "深"
    assert tokenizer.decode([3 + ord("A")]) == "A"
    assert len(tokenizer.encode(" the").ids) == 1  # so some tokens span several bytes


def test_special_tokens_are_those_of_the_tiny_specs(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    write_tokenizer(tmp_path, 300, chat_template=True)
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path)
    spec = tiny_llama()
    assert (tokenizer.bos_token_id, (tokenizer.eos_token_id,)) == (
        spec.bos_token_id,
        spec.eos_token_ids,
    )
    assert tokenizer("<|eos|>").input_ids == [2]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "user: hi\nassistant:"


def test_a_vocabulary_without_room_for_all_bytes_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 259"):
        write_tokenizer(tmp_path, 258)
