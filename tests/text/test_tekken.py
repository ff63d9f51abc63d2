"""Folders with Mistral's tekken.json and no tokenizer.json."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from server.errors import StartupError
from server.text.stages import byte_level_bytes
from server.text.tokenizer import Tokenizer
from tests.text.test_vocabulary_folders import same_as_transformers
from tests.text.tokenizer_folders import added
from tests.text.vocabulary_folders import byte_level

transformers = pytest.importorskip("transformers")

PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = ("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "<pad>")
MISTRAL = {"model_type": "mistral"}


def tekken() -> dict[str, Any]:
    vocabulary = byte_level(())["vocab"]
    ranked = [byte_level_bytes(piece) for piece in sorted(vocabulary, key=vocabulary.__getitem__)]
    return {
        "config": {
            "pattern": PATTERN,
            "num_vocab_tokens": len(ranked),
            "default_vocab_size": 660,
            "default_num_special_tokens": 20,
            "version": "v7",
        },
        "vocab": [
            {"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": None}
            for rank, token in enumerate(ranked)
        ],
        "special_tokens": [
            {"rank": rank, "token_str": text, "is_control": True}
            for rank, text in enumerate(SPECIAL)
        ],
    }


def write(folder: Path, content: object, options: dict[str, Any] | None = None) -> None:
    (folder / "tekken.json").write_text(json.dumps(content))
    (folder / "config.json").write_text(json.dumps({**MISTRAL, "vocab_size": 4096}))
    if options is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(options))


@pytest.mark.parametrize(
    "options",
    [
        {
            "tokenizer_class": "LlamaTokenizer",
            "add_bos_token": True,
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
        },
        {
            "add_eos_token": True,
            "bos_token": None,
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "added_tokens_decoder": {"3": added("[INST]", rstrip=True), "660": added("<tool>")},
        },
    ],
)
def test_a_tekken_file_makes_the_tokenizer_of_transformers(
    options: dict[str, Any], tmp_path: Path
) -> None:
    write(tmp_path, tekken(), options)
    ours = Tokenizer.from_folder(tmp_path, vocab_size=4096, config=MISTRAL)
    same_as_transformers(ours, transformers.AutoTokenizer.from_pretrained(tmp_path))


def test_templates_know_its_ends_where_no_other_file_names_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, tekken())
    ours = Tokenizer.from_folder(tmp_path, config=MISTRAL)
    assert ours.named_tokens == {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    assert ours.encode("[INST]a[/INST]</s><SPECIAL_19>") == [3, 20 + ord("a") - 33, 4, 2, 19]
    assert "does not say add_bos_token: '<s>' is not put before texts" in caplog.text


Change = Callable[[dict[str, Any]], object]
MALFORMED: dict[str, tuple[Change, str]] = {
    "no config": (lambda one: one.pop("config"), "config has no pattern"),
    "a pattern that is none": (lambda one: one["config"].update(pattern="("), "cannot be used: "),
    "no special tokens": (
        lambda one: one.pop("special_tokens"),
        "it names no special_tokens: of this version only Mistral's library knows them",
    ),
    "special tokens with a gap": (
        lambda one: one["special_tokens"].pop(0),
        "special_tokens must be tokens with the ranks from 0 on",
    ),
    "a rank of two": (
        lambda one: one["special_tokens"][1].update(rank=0),
        "special_tokens: the rank 0 is given twice",
    ),
    "a special token twice": (
        lambda one: one["special_tokens"][1].update(token_str="<unk>"),
        "special_tokens: a token has two ranks",
    ),
    "more special tokens than are counted": (
        lambda one: one["config"].update(default_num_special_tokens=3),
        "default_num_special_tokens is 3, of which 7 are named",
    ),
    "a count that is none": (
        lambda one: one["config"].update(default_vocab_size=-1),
        "config: default_vocab_size must be a count, not -1",
    ),
    "no vocabulary": (lambda one: one.update(vocab={}), "vocab must be a list of tokens"),
    "a token that is none": (
        lambda one: one["vocab"].insert(0, ["x"]),
        "vocab: a list of 1 is not a token with its rank and token_bytes",
    ),
    "ranks out of order": (
        lambda one: one["vocab"].reverse(),
        "vocab: the token at 0 has the rank 699",
    ),
    "bytes that are not base64": (
        lambda one: one["vocab"][5].update(token_bytes="*"),
        'vocab: token 5: "*" is not base64',
    ),
    "bytes twice": (
        lambda one: one["vocab"][300].update(token_bytes=one["vocab"][5]["token_bytes"]),
        "vocab: a token is empty or has two ranks",
    ),
    "too few": (
        lambda one: one["config"].update(default_vocab_size=120),
        "vocab: 156 of the 256 bytes have no token",
    ),
    "a special token of the vocabulary": (
        lambda one: one["special_tokens"][3].update(token_str="a"),
        "a special token is also one of the vocabulary",
    ),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_file_is_refused_by_name(name: str, tmp_path: Path) -> None:
    change, told = MALFORMED[name]
    content = tekken()
    change(content)
    write(tmp_path, content)
    with pytest.raises(StartupError) as refused:
        Tokenizer.from_folder(tmp_path, config=MISTRAL)
    assert str(refused.value).startswith(f"tekken.json: {told}")


def test_ids_beyond_the_model_are_refused(tmp_path: Path) -> None:
    write(tmp_path, tekken())
    with pytest.raises(StartupError, match=r"tekken\.json: .* has the id 659, but the model's"):
        Tokenizer.from_folder(tmp_path, config=MISTRAL, vocab_size=659)
