"""A small byte-level tokenizer that can write any text, padded to any vocabulary size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from weights.byte_level import byte_alphabet
from weights.synthetic.tiny_specs import BOS_TOKEN_ID, EOS_TOKEN_ID

BOS_TOKEN, EOS_TOKEN, PAD_TOKEN = "<|bos|>", "<|eos|>", "<|pad|>"
# Some words, and the first two of the three bytes of "深": a token may end within a character.
_MERGES = ("t h", "h e", "i n", "e r", "a n", "r e", "o n", "Ġ a", "th e", "Ġ the", "æ ·")

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def write_tokenizer(folder: Path, vocab_size: int, *, chat_template: bool = False) -> None:
    """Writes tokenizer.json and tokenizer_config.json, with ``chat_template`` a plain one in it.

    Ids: 0 pad, 1 bos, 2 eos, 3..258 the bytes, then a few merges, then fillers whose text is
    ``<|filler_ID|>``. Raises ValueError where ``vocab_size`` is below 259.
    """
    vocabulary, merges = _vocabulary(vocab_size)
    specials = {PAD_TOKEN: 0, BOS_TOKEN: BOS_TOKEN_ID, EOS_TOKEN: EOS_TOKEN_ID}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_special(token, token_id) for token, token_id in specials.items()],
        "normalizer": None,
        "pre_tokenizer": {**byte_level, "use_regex": True},
        "post_processor": None,
        "decoder": {**byte_level, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": merges,
        },
    }
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS_TOKEN,
        "eos_token": EOS_TOKEN,
        "pad_token": PAD_TOKEN,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1_000_000,
    }
    if chat_template:
        config["chat_template"] = CHAT_TEMPLATE
    folder.mkdir(parents=True, exist_ok=True)
    for file, value in (("tokenizer.json", tokenizer), ("tokenizer_config.json", config)):
        text = json.dumps(value, ensure_ascii=False, indent=1)
        (folder / file).write_text(text + "\n", encoding="utf-8")


def _vocabulary(vocab_size: int) -> tuple[dict[str, int], list[list[str]]]:
    tokens = [PAD_TOKEN, BOS_TOKEN, EOS_TOKEN, *byte_alphabet()]
    if vocab_size < len(tokens):
        raise ValueError(f"vocab_size must be at least {len(tokens)}, not {vocab_size}")
    merges = [pair.split(" ") for pair in _MERGES][: vocab_size - len(tokens)]
    tokens += ["".join(pair) for pair in merges]
    tokens += [f"<|filler_{token_id}|>" for token_id in range(len(tokens), vocab_size)]
    return {token: token_id for token_id, token in enumerate(tokens)}, merges


def _special(token: str, token_id: int) -> dict[str, object]:
    return {
        "id": token_id,
        "content": token,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }
