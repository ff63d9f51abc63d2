"""Folders that have a SentencePiece model and no tokenizer.json, trained in a second."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import sentencepiece

from tests.text.mixed_lines import corpus
from tests.text.tokenizer_folders import added, typed

LLAMA = {
    "model_type": "bpe",
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "vocab_size": 900,
}
GEMMA = {
    **LLAMA,
    "add_dummy_prefix": False,
    "pad_id": 0,
    "eos_id": 1,
    "bos_id": 2,
    "unk_id": 3,
    "bos_piece": "<bos>",
    "eos_piece": "<eos>",
    "user_defined_symbols": ["<mask>", "<start_of_turn>", "▁▁", "▁▁▁▁", "\n\n"],
}
T5 = {"model_type": "unigram", "normalization_rule_name": "nmt_nfkc", "vocab_size": 700}


@dataclass(frozen=True)
class SentencePieceFolder:
    """``trainer`` are the arguments of the model's training."""

    trainer: Mapping[str, Any]
    model_type: str = "llama"
    tokenizer_config: Mapping[str, Any] = field(default_factory=dict)


@cache
def _trained(arguments: str) -> bytes:
    sentencepiece.set_min_log_level(2)
    model = io.BytesIO()
    lines = [line for text in corpus() for line in text.split("\n") if line]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        character_coverage=0.99,
        hard_vocab_limit=False,
        num_threads=1,
        **json.loads(arguments),
    )
    return model.getvalue()


def trained(arguments: Mapping[str, Any]) -> bytes:
    return _trained(json.dumps(arguments))


# Of the classes that transformers has, and without one where its own reading leaves nothing out.
FOLDERS: Mapping[str, SentencePieceFolder] = {
    "Llama, legacy": SentencePieceFolder(
        LLAMA,
        tokenizer_config={
            "tokenizer_class": "LlamaTokenizer",
            "legacy": True,
            "add_bos_token": True,
            "add_eos_token": False,
            "bos_token": typed("<s>", normalized=True),
            "eos_token": typed("</s>", normalized=True),
            "unk_token": typed("<unk>", normalized=True),
            "pad_token": None,
        },
    ),
    "Llama, not legacy, tokens added": SentencePieceFolder(
        LLAMA,
        tokenizer_config={
            "tokenizer_class": "LlamaTokenizerFast",
            "legacy": False,
            "add_bos_token": True,
            "add_eos_token": True,
            "added_tokens_decoder": {
                "0": added("<unk>"),
                "1": added("<s>"),
                "2": added("</s>", rstrip=True),
                "900": added("<|im_start|>", rstrip=True),
                "901": added("<|im_end|>", lstrip=True),
                "902": added("lazy", special=False, normalized=True, single_word=True),
            },
        },
    ),
    "Llama, no prefix space": SentencePieceFolder(
        LLAMA, tokenizer_config={"tokenizer_class": "LlamaTokenizer", "add_prefix_space": False}
    ),
    "Code Llama": SentencePieceFolder(
        {**LLAMA, "user_defined_symbols": ["▁<PRE>", "▁<MID>", "▁<SUF>", "▁<EOT>"]},
        tokenizer_config={"tokenizer_class": "CodeLlamaTokenizer", "add_bos_token": True},
    ),
    "Gemma": SentencePieceFolder(
        GEMMA,
        "gemma2",
        {"tokenizer_class": "GemmaTokenizer", "add_bos_token": True, "add_eos_token": False},
    ),
    "Gemma by its type": SentencePieceFolder(GEMMA, "gemma3_text", {"add_bos_token": True}),
    "no class, no prefix": SentencePieceFolder(
        {**LLAMA, "add_dummy_prefix": False},
        "stablelm",
        {"add_bos_token": True, "added_tokens_decoder": {"7": added("<|reserved|>")}},
    ),
    "no class, Unigram with NFKC": SentencePieceFolder(
        {**T5, "add_dummy_prefix": False, "remove_extra_whitespaces": False},
        "granite",
        {
            "add_bos_token": True,
            "add_eos_token": True,
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    ),
}


def write(folder: Path, one: SentencePieceFolder) -> dict[str, Any]:
    """Writes the folder and gives its config.json."""
    config = {"model_type": one.model_type, "vocab_size": 4096}
    (folder / "tokenizer.model").write_bytes(trained(one.trainer))
    files = {"config.json": config, "tokenizer_config.json": one.tokenizer_config}
    for file, content in files.items():
        (folder / file).write_text(json.dumps(content))
    return config
