"""Folders that have vocab.json and merges.txt and no tokenizer.json, of each class that does."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import models, normalizers, pre_tokenizers
from tokenizers.trainers import BpeTrainer

from server.text.stages import byte_of_character
from tests.text.mixed_lines import corpus
from tests.text.tokenizer_folders import added, typed

END = "<|endoftext|>"


@dataclass(frozen=True)
class VocabularyFolder:
    """``special`` are tokens of the vocabulary that no merge makes, first ones first."""

    model_type: str
    tokenizer_config: Mapping[str, Any]
    special: Sequence[str] = (END,)
    train: Callable[[Sequence[str]], Mapping[str, Any]] = field(
        default=lambda s: byte_level(tuple(s))
    )
    files: Mapping[str, Any] = field(default_factory=dict)


@cache
def byte_level(special: tuple[str, ...]) -> Mapping[str, Any]:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return _trained(backend, special, alphabet=sorted(byte_of_character()))


@cache
def lower_case(special: tuple[str, ...]) -> Mapping[str, Any]:
    """GPT-1's: </w> ends a word."""
    backend = tokenizers.Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<unk>"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return _trained(backend, special, end_of_word_suffix="</w>")


def _trained(
    backend: tokenizers.Tokenizer,
    special: tuple[str, ...],
    *,
    alphabet: Sequence[str] = (),
    **more: Any,
) -> Mapping[str, Any]:
    trainer = BpeTrainer(
        vocab_size=700,
        initial_alphabet=list(alphabet),
        special_tokens=list(special),
        show_progress=False,
        **more,
    )
    backend.train_from_iterator(corpus(), trainer)
    model: Mapping[str, Any] = json.loads(backend.to_str())["model"]
    return model


FOLDERS: Mapping[str, VocabularyFolder] = {
    "GPT-2, no other file": VocabularyFolder("gpt2", {}),
    "GPT-2 by class, a prefix space": VocabularyFolder(
        "llama",
        {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True, "add_bos_token": True},
    ),
    "GPT-Neo and GPT-J": VocabularyFolder(
        "gptj",
        {"bos_token": END, "eos_token": END, "unk_token": END, "add_prefix_space": False},
        files={"added_tokens.json": {"<|extratoken_1|>": 700, "<|extratoken_2|>": 701}},
    ),
    "OPT, its first token added": VocabularyFolder(
        "opt",
        {
            "tokenizer_class": "GPT2Tokenizer",
            "add_bos_token": True,
            "bos_token": typed("</s>", normalized=True),
            "eos_token": typed("</s>", normalized=True),
            "unk_token": typed("</s>", normalized=True),
            "pad_token": typed("<pad>", normalized=True),
        },
        special=("<s>", "<pad>", "</s>", "<unk>"),
    ),
    "GPT-1": VocabularyFolder(
        "openai-gpt", {}, special=("<unk>",), train=lambda s: lower_case(tuple(s))
    ),
    "CodeGen, Phi's runs of spaces added": VocabularyFolder(
        "phi",
        {
            "tokenizer_class": "CodeGenTokenizer",
            "add_prefix_space": False,
            "added_tokens_decoder": {
                "0": added(END),
                **{
                    str(700 + index): added(" " * (8 - index), special=False, normalized=True)
                    for index in range(7)
                },
                "707": added("\t\t", special=False, normalized=True),
            },
        },
    ),
    "Qwen2": VocabularyFolder(
        "qwen2",
        {
            "tokenizer_class": "Qwen2Tokenizer",
            "eos_token": "<|im_end|>",
            "pad_token": END,
            "bos_token": None,
            "add_prefix_space": False,
            "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
            "added_tokens_decoder": {
                "0": added(END),
                "700": added("<|im_start|>"),
                "701": added("<|im_end|>"),
                "702": added("<tool>", special=False),
            },
        },
    ),
    "GPT-NeoX": VocabularyFolder(
        "gpt_neox",
        {"tokenizer_class": "GPTNeoXTokenizer", "add_bos_token": True, "add_eos_token": True},
        special=(END, "<|padding|>"),
    ),
    "Cohere, digits apart": VocabularyFolder(
        "cohere",
        {"tokenizer_class": "CohereTokenizer", "add_bos_token": True},
        special=(
            "<PAD>",
            "<UNK>",
            "<CLS>",
            "<SEP>",
            "<MASK_TOKEN>",
            "<BOS_TOKEN>",
            "<|END_OF_TURN_TOKEN|>",
        ),
    ),
    "RoBERTa": VocabularyFolder(
        "opt",
        {
            "tokenizer_class": "RobertaTokenizer",
            "mask_token": typed("<mask>", lstrip=True),
        },
        special=("<s>", "<pad>", "</s>", "<unk>", "<mask>"),
    ),
}


def write(folder: Path, name: str) -> dict[str, Any]:
    """Writes the folder and gives its config.json."""
    one = FOLDERS[name]
    model = one.train(one.special)
    config = {"model_type": one.model_type, "vocab_size": 4096}
    merges = "".join(f"{left} {right}\n" for left, right in model["merges"])
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}")
    files = {"config.json": config, "tokenizer_config.json": one.tokenizer_config, **one.files}
    for file, content in files.items():
        (folder / file).write_text(json.dumps(content))
    return config
