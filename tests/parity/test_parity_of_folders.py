"""Folders that say the same in other words: older names, the bare decoder, keys without effect.

Each gives the numbers of transformers, which loads it without a complaint.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.execution import stepping
from tests.parity import oracle
from weights.checkpoint.folder import open_checkpoint
from weights.checkpoint.matching import match
from weights.errors import CheckpointError
from weights.families import resolve
from weights.spec import ModelSpec
from weights.synthetic.checkpoint import tiny_gpt2, tiny_llama, write_checkpoint

PROMPT = np.random.default_rng(11).integers(3, 512, size=60).tolist()
LLAMA, GPT2 = tiny_llama(num_layers=2), tiny_gpt2(num_layers=2)
UNSCALED = replace(GPT2, attention=replace(GPT2.attention, scale=1.0))
Tensors = dict[str, torch.Tensor]


def edit(folder: Path, **changes: Any) -> None:
    """Sets keys of config.json, or removes those that are given as ``...``."""
    path = folder / "config.json"
    changed = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: one for key, one in changed.items() if one is not ...}))


def rename(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def bare(prefix: str, *, head: bool) -> Callable[[Tensors], Tensors]:
    """The names that the decoder alone is saved with."""

    def change(tensors: Tensors) -> Tensors:
        kept = {name.removeprefix(prefix): one for name, one in tensors.items()}
        return kept if head else {n: one for n, one in kept.items() if n != "lm_head.weight"}

    return change


def same(tensors: Tensors) -> Tensors:
    return tensors


FOLDERS: dict[str, tuple[ModelSpec, dict[str, Any], Callable[[Tensors], Tensors]]] = {
    "llama sliced in training": (LLAMA, {"pretraining_tp": 4}, same),
    "llama by its oldest name": (LLAMA, {"architectures": ["LLaMAForCausalLM"]}, same),
    "llama decoder, tied": (
        tiny_llama(num_layers=2, tied=True),
        {"architectures": ["LlamaModel"]},
        bare("model.", head=False),
    ),
    "llama decoder and a head": (
        LLAMA,
        {"architectures": ["LlamaModel"]},
        bare("model.", head=True),
    ),
    "gpt2 decoder": (GPT2, {"architectures": ["GPT2Model"]}, bare("transformer.", head=False)),
    "gpt2 decoder that says nothing of a tie": (
        GPT2,
        {"architectures": ["GPT2Model"], "tie_word_embeddings": ...},
        bare("transformer.", head=False),
    ),
    "gpt2 with scores in float32": (GPT2, {"reorder_and_upcast_attn": True}, same),
    "gpt2 unscaled": (UNSCALED, {}, same),
    "gpt2 unscaled, scores in float32": (UNSCALED, {"reorder_and_upcast_attn": True}, same),
    "gpt2 gelu_fast": (GPT2, {"activation_function": "gelu_fast"}, same),
    "gpt2 gelu_accurate": (GPT2, {"activation_function": "gelu_accurate"}, same),
    "gpt2 gelu_python": (GPT2, {"activation_function": "gelu_python"}, same),
    "gpt2 gelu_python_tanh": (GPT2, {"activation_function": "gelu_python_tanh"}, same),
}


def write(name: str, folder: Path) -> None:
    spec, changes, change = FOLDERS[name]
    write_checkpoint(spec, folder, seed=2)
    edit(folder, **changes)
    rename(folder, change)


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_in_other_words_gives_the_numbers_of_transformers(
    name: str, tmp_path: Path
) -> None:
    write(name, tmp_path)
    theirs = oracle.load(tmp_path)
    assert oracle.relative_entropy(theirs, PROMPT) < 0.6
    expected = oracle.logits(theirs, PROMPT)
    got = stepping.all_logits(stepping.built(tmp_path).runner, PROMPT)
    assert float((got - expected).abs().max() / expected.abs().max()) <= 1e-4


@pytest.mark.parametrize(("format", "bound"), [("bf16", 0.06), ("f16", 0.01)])
def test_scores_are_float32_in_16_bits_too_so_the_key_changes_nothing(
    format: str, bound: float, tmp_path: Path
) -> None:
    write_checkpoint(GPT2, tmp_path, seed=2, format=format)
    plain = stepping.all_logits(stepping.built(tmp_path, format=format).runner, PROMPT)
    edit(tmp_path, reorder_and_upcast_attn=True)
    upcast = stepping.all_logits(stepping.built(tmp_path, format=format).runner, PROMPT)
    assert torch.equal(upcast, plain)
    dtype = torch.bfloat16 if format == "bf16" else torch.float16
    theirs = oracle.logits(oracle.load(tmp_path, dtype), PROMPT)
    error = (upcast - theirs).abs().mean() / theirs.abs().max()
    assert float(error) <= bound


def test_a_decoder_without_any_head_is_refused_in_words(tmp_path: Path) -> None:
    write_checkpoint(LLAMA, tmp_path, seed=2)
    edit(tmp_path, architectures=["LlamaModel"])
    rename(tmp_path, bare("model.", head=False))
    checkpoint = open_checkpoint(tmp_path)
    family = resolve(checkpoint.config)
    with pytest.raises(CheckpointError) as caught:
        match(checkpoint, family, family.spec(checkpoint.config))
    assert 'missing tensors: "lm_head.weight"' in str(caught.value)
    assert "without an unembedding the model cannot choose a token" in str(caught.value)
    assert "tie_word_embeddings" in str(caught.value)
