"""Folders of small tokenizers whose special tokens stand in this file or in that."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer, UnigramTrainer, WordPieceTrainer

from server.text.stages import byte_of_character

CORPUS = [
    "the cat sat on the mat and the dog sat on the log",
    "hello world, hello there; what is new? it's the 1st of 12 days!",
    "def add(a, b):\n    return a + b\n\n\tprint('naïve café')",
    "Don't do that. We'll see; they've gone, I'm sure 3.14 isn't 42",
    "深度学习是人工智能的一部分 深度 学习",
] * 4
END, MARKS = "<|endoftext|>", ("<|im_start|>", "<|im_end|>", "<tool>", "<s>", "</s>", "<unk>")


def byte_level() -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(byte_of_character())
    backend.train_from_iterator(
        CORPUS, BpeTrainer(vocab_size=340, initial_alphabet=alphabet, show_progress=False)
    )
    return backend


def llama_like(*, old: bool = False) -> tokenizers.Tokenizer:
    """``old``: with a normalizer, as Llama 2 was saved; else with Metaspace."""
    words = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Metaspace()
    words.train_from_iterator(
        [text for text in CORPUS if text.isascii()],
        BpeTrainer(vocab_size=160, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False),
    )
    model = json.loads(words.to_str())["model"]
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2}
    vocab |= {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    for piece in model["vocab"]:
        vocab.setdefault(piece, len(vocab))
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab=vocab,
            merges=[tuple(merge) for merge in model["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    stages = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*stages, decoders.Strip(" ", 1, 0)])
    if old:
        backend.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    return backend


def old_llama_like() -> tokenizers.Tokenizer:
    return llama_like(old=True)


def word_piece() -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(cleanup=False)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    backend.train_from_iterator(
        CORPUS, WordPieceTrainer(vocab_size=200, special_tokens=special, show_progress=False)
    )
    return backend


def unigram() -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.Unigram())
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(tokenizers.Regex(" {2,}"), " ")]
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.train_from_iterator(
        CORPUS,
        UnigramTrainer(
            vocab_size=130,
            special_tokens=["<pad>", "</s>", "<unk>"],
            unk_token="<unk>",
            show_progress=False,
        ),
    )
    return backend


def added(content: str, **flags: bool) -> dict[str, Any]:
    """A token as added_tokens_decoder has it."""
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"content": content, **plain, "special": True, **flags}


def typed(content: str, **flags: bool) -> dict[str, Any]:
    """A token as transformers 4 saved it in tokenizer_config.json."""
    token = {key: value for key, value in added(content, **flags).items() if key != "special"}
    return {"__type": "AddedToken", **token}


NEXT = "the id after the last"
Files = Mapping[str, Any]  # by name: what tokenizer_config.json and its like hold

# name: tokenizer, config.json's model_type, the other files. byte_level's next id is 340.
VARIANTS: Mapping[str, tuple[Callable[[], tokenizers.Tokenizer], str, Files]] = {
    "GPT-2, no other file": (byte_level, "gpt2", {}),
    "GPT-2 by class, with a prefix space": (
        byte_level,
        "gpt2",
        {"tokenizer_config": {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True}},
    ),
    "byte-level, no class": (
        byte_level,
        "llama",
        {"tokenizer_config": {"bos_token": END, "eos_token": END, "add_prefix_space": True}},
    ),
    "byte-level called Llama's": (
        byte_level,
        "llama",
        {
            "tokenizer_config": {
                "tokenizer_class": "LlamaTokenizerFast",
                "bos_token": "<s>",
                "eos_token": typed("</s>", rstrip=True),
                "add_bos_token": True,
            }
        },
    ),
    "additional special tokens": (
        byte_level,
        "llama",
        {
            "tokenizer_config": {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "eos_token": END,
                "pad_token": None,
                "additional_special_tokens": [
                    "<|im_start|>",
                    typed("<|im_end|>", lstrip=True, rstrip=True),
                ],
            }
        },
    ),
    "extra special tokens, a list beside the old one": (
        byte_level,
        "llama",
        {
            "tokenizer_config": {
                "extra_special_tokens": ["<tool>"],
                "additional_special_tokens": ["<|im_start|>"],
                "image_token": "<|im_end|>",
                "audio_token": typed("</s>", single_word=True),
            }
        },
    ),
    "extra special tokens by name": (
        byte_level,
        "gpt2",
        {
            "tokenizer_config": {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "extra_special_tokens": {"image_token": "<|im_start|>", "end": "<|im_end|>"},
                "split_special_tokens": False,
            }
        },
    ),
    "added_tokens_decoder with every flag": (
        byte_level,
        "llama",
        {
            "tokenizer_config": {
                "added_tokens_decoder": {
                    "341": added("<|im_start|>", rstrip=True),
                    "340": added(END),
                    "342": added("<|im_end|>", lstrip=True),
                    "343": added("cat", special=False, normalized=True, single_word=True),
                    "344": added("<tool>", special=False),
                },
                "bos_token": END,
                "eos_token": "<tool>",
            },
            # Not read where there is an added_tokens_decoder:
            "special_tokens_map": {"eos_token": "dog"},
            "added_tokens": {"sat": 345},
        },
    ),
    "special_tokens_map": (
        byte_level,
        "llama",
        {
            "tokenizer_config": {"eos_token": "overruled"},
            "special_tokens_map": {
                "bos_token": {**added("<s>", rstrip=True), "special": False},
                "eos_token": END,
                "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
                "extra_special_tokens": ["<tool>", {"content": "</s>", "lstrip": True}],
            },
        },
    ),
    "added_tokens": (
        byte_level,
        "gpt2",
        {
            "tokenizer_config": {"tokenizer_class": "GPT2TokenizerFast", "pad_token": "<pad>"},
            "special_tokens_map": {"eos_token": "<|im_end|>"},
            "added_tokens": {"<|im_start|>": 341, "<|im_end|>": 340, "The Cat": 342},
        },
    ),
    "special tokens are split": (
        byte_level,
        "llama",
        {"tokenizer_config": {"eos_token": END, "split_special_tokens": True}},
    ),
    "GPT-NeoX by class": (
        byte_level,
        "llama",
        {"tokenizer_config": {"tokenizer_class": "GPTNeoXTokenizerFast"}},
    ),
    "Qwen 2 by class": (
        byte_level,
        "llama",
        {
            "tokenizer_config": {
                "tokenizer_class": "Qwen2Tokenizer",
                "eos_token": "<|im_end|>",
                "added_tokens_decoder": {
                    "340": added(END),
                    "341": added("<|im_end|>", rstrip=True),
                },
            }
        },
    ),
    "Llama by class": (
        llama_like,
        "llama",
        {
            "tokenizer_config": {
                "tokenizer_class": "LlamaTokenizer",
                "legacy": False,
                "add_bos_token": False,
                "add_eos_token": True,
                "pad_token": "<pad>",
            }
        },
    ),
    "Llama by class, legacy, from a normalizer": (
        old_llama_like,
        "llama",
        {
            "tokenizer_config": {
                "tokenizer_class": "LlamaTokenizer",
                "legacy": True,
                "eos_token": typed("</s>", normalized=True),
                "additional_special_tokens": ["<tool>"],
            }
        },
    ),
    "Llama by class, no prefix space": (
        llama_like,
        "llama",
        {"tokenizer_config": {"tokenizer_class": "LlamaTokenizer", "add_prefix_space": False}},
    ),
    "Llama's file as it stands": (
        old_llama_like,
        "llama",
        {
            "tokenizer_config": {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "clean_up_tokenization_spaces": True,
                "added_tokens_decoder": {"1": added("<s>"), "2": added("</s>", lstrip=True)},
            }
        },
    ),
    "Code Llama by class, its tokens not named": (
        old_llama_like,
        "llama",
        {"tokenizer_config": {"tokenizer_class": "CodeLlamaTokenizer", "pad_token": "<pad>"}},
    ),
    "Code Llama by class, as published": (
        old_llama_like,
        "llama",
        {
            "tokenizer_config": {
                "tokenizer_class": "CodeLlamaTokenizer",
                "added_tokens_decoder": {
                    "0": added("<unk>", normalized=True),
                    "1": added("<s>", normalized=True),
                    "2": added("</s>", normalized=True),
                },
                "additional_special_tokens": ["▁<PRE>", "▁<MID>", "▁<SUF>", "▁<EOT>"],
                "bos_token": typed("<s>", normalized=True),
                "eot_token": "▁<EOT>",
                "fill_token": "<FILL_ME>",
                "suffix_first": False,
            }
        },
    ),
    "Code Llama by class, without infilling": (
        llama_like,
        "llama",
        {
            "tokenizer_config": {
                "tokenizer_class": "CodeLlamaTokenizerFast",
                "add_prefix_space": False,
                "prefix_token": None,
                "middle_token": None,
                "suffix_token": None,
                "eot_token": None,
                "fill_token": None,
            }
        },
    ),
    "Gemma by class": (
        llama_like,
        "llama",
        {"tokenizer_config": {"tokenizer_class": "GemmaTokenizer", "bos_token": "<s>"}},
    ),
    "BERT by class, cased": (
        word_piece,
        "gpt2",
        {
            "tokenizer_config": {
                "tokenizer_class": "BertTokenizer",
                "do_lower_case": False,
                "clean_up_tokenization_spaces": True,
                "extra_special_tokens": ["<|im_start|>"],
            }
        },
    ),
    "WordPiece": (
        word_piece,
        "llama",
        {
            "tokenizer_config": {
                "clean_up_tokenization_spaces": True,
                "mask_token": typed("[MASK]", lstrip=True),
                "eos_token": "[SEP]",
                "pad_token": "[END]",
            }
        },
    ),
    "Unigram": (
        unigram,
        "llama",
        {
            "tokenizer_config": {"tokenizer_class": "SomebodysTokenizer", "pad_token": "<pad>"},
            "special_tokens_map": {"eos_token": "</s>", "unk_token": "<unk>"},
            "added_tokens": {"<tool>": NEXT},
        },
    ),
}


@cache
def _saved(make: Callable[[], tokenizers.Tokenizer]) -> str:
    return make().to_str()


def write_folder(folder: Path, name: str) -> dict[str, Any]:
    """Writes the variant and gives its config.json."""
    make, model_type, files = VARIANTS[name]
    backend = tokenizers.Tokenizer.from_str(_saved(make))
    backend.save(str(folder / "tokenizer.json"))
    config = {"model_type": model_type, "vocab_size": 4096}
    for file, value in (("config", config), *files.items()):
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
