"""Folders of small tokenizers whose special tokens stand in this file or in that."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import tokenizers

from tests.text.trained_tokenizers import (
    CORPUS,
    byte_level,
    digits_apart,
    llama_3_like,
    llama_like,
    metaspace_always,
    metaspace_never,
    old_llama_like,
    unigram,
    word_piece,
)

END, MARKS = "<|endoftext|>", ("<|im_start|>", "<|im_end|>", "<tool>", "<s>", "</s>", "<unk>")


def added(content: str, **flags: bool) -> dict[str, Any]:
    """A token as added_tokens_decoder has it."""
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"content": content, **plain, "special": True, **flags}


def typed(content: str, **flags: bool) -> dict[str, Any]:
    """A token as transformers 4 saved it in tokenizer_config.json."""
    token = {key: value for key, value in added(content, **flags).items() if key != "special"}
    return {"__type": "AddedToken", **token}


NEXT = "the id after the last"


@dataclass(frozen=True)
class Folder:
    """What tokenizer.json holds, config.json's model_type, and the other files by name."""

    make: Callable[[], tokenizers.Tokenizer]
    model_type: str
    files: Mapping[str, Any]


def folder(
    make: Callable[[], tokenizers.Tokenizer],
    model_type: str = "llama",
    special_tokens_map: Any = None,
    added_tokens: Any = None,
    **tokenizer_config: Any,
) -> Folder:
    files = {"tokenizer_config": tokenizer_config or None}
    files |= {"special_tokens_map": special_tokens_map, "added_tokens": added_tokens}
    return Folder(make, model_type, {name: has for name, has in files.items() if has is not None})


# byte_level's next id is 340.
VARIANTS: Mapping[str, Folder] = {
    "GPT-2, no other file": folder(byte_level, model_type="gpt2"),
    "GPT-2 by class, with a prefix space": folder(
        byte_level, model_type="gpt2", tokenizer_class="GPT2Tokenizer", add_prefix_space=True
    ),
    "byte-level, no class": folder(byte_level, bos_token=END, eos_token=END, add_prefix_space=True),
    "byte-level called Llama's": folder(
        byte_level,
        tokenizer_class="LlamaTokenizerFast",
        bos_token="<s>",
        eos_token=typed("</s>", rstrip=True),
        add_bos_token=True,
    ),
    "additional special tokens": folder(
        byte_level,
        tokenizer_class="PreTrainedTokenizerFast",
        eos_token=END,
        pad_token=None,
        additional_special_tokens=["<|im_start|>", typed("<|im_end|>", lstrip=True, rstrip=True)],
    ),
    "extra special tokens, a list beside the old one": folder(
        byte_level,
        extra_special_tokens=["<tool>"],
        additional_special_tokens=["<|im_start|>"],
        image_token="<|im_end|>",
        audio_token=typed("</s>", single_word=True),
    ),
    "extra special tokens by name": folder(
        byte_level,
        model_type="gpt2",
        tokenizer_class="PreTrainedTokenizerFast",
        extra_special_tokens={"image_token": "<|im_start|>", "end": "<|im_end|>"},
        split_special_tokens=False,
    ),
    "added_tokens_decoder with every flag": folder(
        byte_level,
        added_tokens_decoder={
            "341": added("<|im_start|>", rstrip=True),
            "340": added(END),
            "342": added("<|im_end|>", lstrip=True),
            "343": added("cat", special=False, normalized=True, single_word=True),
            "344": added("<tool>", special=False),
        },
        bos_token=END,
        eos_token="<tool>",
        # Not read where there is an added_tokens_decoder:
        special_tokens_map={"eos_token": "dog"},
        added_tokens={"sat": 345},
    ),
    "special_tokens_map": folder(
        byte_level,
        eos_token="overruled",
        special_tokens_map={
            "bos_token": {**added("<s>", rstrip=True), "special": False},
            "eos_token": END,
            "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
            "extra_special_tokens": ["<tool>", {"content": "</s>", "lstrip": True}],
        },
    ),
    "added_tokens": folder(
        byte_level,
        model_type="gpt2",
        tokenizer_class="GPT2TokenizerFast",
        pad_token="<pad>",
        special_tokens_map={"eos_token": "<|im_end|>"},
        added_tokens={"<|im_start|>": 341, "<|im_end|>": 340, "The Cat": 342},
    ),
    "special tokens are split": folder(byte_level, eos_token=END, split_special_tokens=True),
    "GPT-NeoX by class": folder(byte_level, tokenizer_class="GPTNeoXTokenizerFast"),
    "Qwen 2 by class": folder(
        byte_level,
        tokenizer_class="Qwen2Tokenizer",
        eos_token="<|im_end|>",
        added_tokens_decoder={"340": added(END), "341": added("<|im_end|>", rstrip=True)},
    ),
    "Llama by class": folder(
        llama_like,
        tokenizer_class="LlamaTokenizer",
        legacy=False,
        add_bos_token=False,
        add_eos_token=True,
        pad_token="<pad>",
    ),
    "Llama by class, legacy, from a normalizer": folder(
        old_llama_like,
        tokenizer_class="LlamaTokenizer",
        legacy=True,
        eos_token=typed("</s>", normalized=True),
        additional_special_tokens=["<tool>"],
    ),
    "Llama by class, no prefix space": folder(
        llama_like, tokenizer_class="LlamaTokenizer", add_prefix_space=False
    ),
    "Llama's file as it stands": folder(
        old_llama_like,
        tokenizer_class="PreTrainedTokenizerFast",
        clean_up_tokenization_spaces=True,
        added_tokens_decoder={"1": added("<s>"), "2": added("</s>", lstrip=True)},
    ),
    "Code Llama by class, its tokens not named": folder(
        old_llama_like, tokenizer_class="CodeLlamaTokenizer", pad_token="<pad>"
    ),
    "Code Llama by class, as published": folder(
        old_llama_like,
        tokenizer_class="CodeLlamaTokenizer",
        added_tokens_decoder={
            "0": added("<unk>", normalized=True),
            "1": added("<s>", normalized=True),
            "2": added("</s>", normalized=True),
        },
        additional_special_tokens=["▁<PRE>", "▁<MID>", "▁<SUF>", "▁<EOT>"],
        bos_token=typed("<s>", normalized=True),
        eot_token="▁<EOT>",
        fill_token="<FILL_ME>",
        suffix_first=False,
    ),
    "Code Llama by class, without infilling": folder(
        llama_like,
        tokenizer_class="CodeLlamaTokenizerFast",
        add_prefix_space=False,
        prefix_token=None,
        middle_token=None,
        suffix_token=None,
        eot_token=None,
        fill_token=None,
    ),
    "Gemma by class": folder(llama_like, tokenizer_class="GemmaTokenizer", bos_token="<s>"),
    "BERT by class, cased": folder(
        word_piece,
        model_type="gpt2",
        tokenizer_class="BertTokenizer",
        do_lower_case=False,
        clean_up_tokenization_spaces=True,
        extra_special_tokens=["<|im_start|>"],
    ),
    "WordPiece": folder(
        word_piece,
        clean_up_tokenization_spaces=True,
        mask_token=typed("[MASK]", lstrip=True),
        eos_token="[SEP]",
        pad_token="[END]",
    ),
    "Mistral's file as it stands, called Llama's": folder(
        old_llama_like, model_type="mistral", tokenizer_class="LlamaTokenizer", legacy=False
    ),
    "Qwen 2 called Llama's": folder(
        byte_level,
        model_type="qwen2",
        tokenizer_class="LlamaTokenizerFast",
        bos_token="<s>",
        eos_token="</s>",
    ),
    "GPT-BigCode's file as it stands, called GPT-2's": folder(
        byte_level, model_type="gpt_bigcode", tokenizer_class="GPT2Tokenizer"
    ),
    "CodeGen by class": folder(
        byte_level,
        model_type="phi",
        tokenizer_class="CodeGenTokenizer",
        added_tokens_decoder={"340": added(END), "341": added("  ", special=False)},
    ),
    "Cohere by its type": folder(byte_level, model_type="cohere2"),
    "OPT by its type": folder(byte_level, model_type="opt"),
    "Gemma by its type": folder(llama_like, model_type="gemma2"),
    "RoBERTa by class": folder(byte_level, tokenizer_class="RobertaTokenizerFast"),
    "Llama 3's words": folder(
        llama_3_like,
        tokenizer_class="PreTrainedTokenizerFast",
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        clean_up_tokenization_spaces=True,
        added_tokens_decoder={
            "340": added("<|begin_of_text|>"),
            "341": added("<|eot_id|>"),
            "342": added("<|im_start|>"),
        },
    ),
    "digits apart, no class": folder(digits_apart, eos_token="<|eot_id|>"),
    "Metaspace at every beginning, NFKC": folder(metaspace_always, model_type="mistral"),
    "Metaspace without a prefix": folder(metaspace_never, model_type="granite"),
    "Unigram": folder(
        unigram,
        tokenizer_class="SomebodysTokenizer",
        pad_token="<pad>",
        special_tokens_map={"eos_token": "</s>", "unk_token": "<unk>"},
        added_tokens={"<tool>": NEXT},
    ),
}


@cache
def _saved(make: Callable[[], tokenizers.Tokenizer]) -> str:
    return make().to_str()


def write_folder(folder: Path, name: str) -> dict[str, Any]:
    """Writes the variant and gives its config.json."""
    variant = VARIANTS[name]
    backend = tokenizers.Tokenizer.from_str(_saved(variant.make))
    backend.save(str(folder / "tokenizer.json"))
    config = {"model_type": variant.model_type, "vocab_size": 4096}
    for file, value in (("config", config), *variant.files.items()):
        written = json.dumps(value).replace(json.dumps(NEXT), str(backend.get_vocab_size()))
        (folder / f"{file}.json").write_text(written)
    return config


def texts(count: int = 200) -> list[str]:
    """Words, spaces of all kinds, special tokens with and without space around them, Unicode."""
    pick = random.Random(11)
    words = [*" ".join(CORPUS[:5]).split(" "), "  ", "\n", "\t", "\u00a0", "ﬁ", "e\u0301", "👩‍👩‍👧"]
    marks = [*MARKS, END, "[MASK]", "[SEP]", "cat", "The Cat", "<pad>", "dog", "▁", "<0x41>"]
    return ["", " ", *CORPUS[:5]] + [
        "".join(
            pick.choice(("", " ", " ", "  ")) + pick.choice(words if pick.random() < 0.6 else marks)
            for _ in range(pick.randint(1, 9))
        )
        for _ in range(count - 7)
    ]
