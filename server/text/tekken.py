"""Mistral's tekken.json: byte strings by rank, the words of a text as a regular expression, and
special tokens, whose ids come first.

What is merged is not in the file: two pieces become one wherever their bytes are a piece, that of
the lowest rank first. transformers 5.23 is the reference: integrations/mistral/tokenizer.py.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from weights.byte_level import byte_alphabet
from weights.checkpoint.folder import read_json
from weights.errors import CheckpointError
from weights.strict_json import shown

TEKKEN_FILE = "tekken.json"
# What the tokens that every version begins with are, by the names that templates know.
TEKKEN_NAMES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
_MAX_BYTES = 64 << 20
_MAX_VALUES = 8_000_000
_MAX_SPECIAL = 1 << 16
# Of the square of each piece's bytes: what finding the merges costs.
_MAX_MERGE_WORK = 400_000_000


def read_tekken(folder: Path) -> tuple[tokenizers.Tokenizer, Mapping[str, int]]:
    """The tokenizer of the folder's tekken.json, and its tokens by text.

    Raises:
        CheckpointError: the file is malformed, or of the version that leaves special tokens to
            Mistral's library; names it.
    """
    try:
        return _tokenizer(read_json(folder, TEKKEN_FILE, _MAX_BYTES, _MAX_VALUES))
    except _Fault as fault:
        raise CheckpointError(f"{TEKKEN_FILE}: {fault}") from None


class _Fault(Exception):
    """What is wrong with the file."""


def _tokenizer(tekken: Mapping[str, Any]) -> tuple[tokenizers.Tokenizer, Mapping[str, int]]:
    config = tekken.get("config")
    pattern = config.get("pattern") if isinstance(config, dict) else None
    if not isinstance(config, dict) or not isinstance(pattern, str):
        raise _Fault("config has no pattern")
    special = _special(tekken.get("special_tokens"), config)
    size = _count(config, "default_vocab_size")
    ranked = _ranked(tekken.get("vocab"), None if size is None else size - len(special))
    alphabet = byte_alphabet()
    spelled = ["".join(alphabet[byte] for byte in token) for token in ranked]
    ids = {text: id for id, text in enumerate((*special, *spelled))}
    if len(ids) < len(special) + len(spelled):
        raise _Fault("a special token is also one of the vocabulary")
    merges = [(spelled[left], spelled[right]) for left, right in _merges(ranked)]
    try:
        backend = tokenizers.Tokenizer(models.BPE(vocab=ids, merges=merges, ignore_merges=True))
        words = pre_tokenizers.Split(tokenizers.Regex(pattern), behavior="isolated")
    except Exception as error:  # the library's, which are bare Exceptions
        raise _Fault(f"cannot be used: {error}") from error
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in special])
    return backend, ids


def _special(given: object, config: Mapping[str, Any]) -> Sequence[str]:
    """Special tokens by id, with a filler for each that the file counts and does not name."""
    if given is None:
        raise _Fault(
            "it names no special_tokens: of this version only Mistral's library knows them"
        )
    texts: dict[int, str] = {}
    for entry in given if isinstance(given, list) else ():
        rank, text = _entry(entry, "token_str", "special_tokens")
        if texts.setdefault(rank, text) != text:
            raise _Fault(f"special_tokens: the rank {rank} is given twice")
    if not texts or sorted(texts) != list(range(len(texts))):
        raise _Fault("special_tokens must be tokens with the ranks from 0 on")
    count = _count(config, "default_num_special_tokens") or len(texts)
    if not len(texts) <= count <= _MAX_SPECIAL:
        raise _Fault(f"default_num_special_tokens is {count}, of which {len(texts)} are named")
    tokens = [texts.get(rank, f"<SPECIAL_{rank}>") for rank in range(count)]
    if len(set(tokens)) < count:
        raise _Fault("special_tokens: a token has two ranks")
    return tokens


def _ranked(given: object, most: int | None) -> Sequence[bytes]:
    """The vocabulary's byte strings by rank; what is beyond ``most`` is padding."""
    if not isinstance(given, list) or not given:
        raise _Fault("vocab must be a list of tokens")
    ranked: list[bytes] = []
    for index, entry in enumerate(given if most is None else given[: max(most, 0)]):
        rank, text = _entry(entry, "token_bytes", "vocab")
        if rank != index:
            raise _Fault(f"vocab: the token at {index} has the rank {rank}")
        try:
            ranked.append(base64.b64decode(text, validate=True))
        except (binascii.Error, ValueError):
            raise _Fault(f"vocab: token {index}: {shown(text)} is not base64") from None
    if len(set(ranked)) < len(ranked) or b"" in ranked:
        raise _Fault("vocab: a token is empty or has two ranks")
    missing = {bytes([byte]) for byte in range(256)} - set(ranked)
    if missing:
        raise _Fault(f"vocab: {len(missing)} of the 256 bytes have no token")
    return ranked


def _merges(ranked: Sequence[bytes]) -> Sequence[tuple[int, int]]:
    """Pairs of ranks, in the order in which they are merged."""
    work = sum(len(token) ** 2 for token in ranked)
    if work > _MAX_MERGE_WORK:
        raise _Fault(f"its tokens are too long to find their merges ({work} steps)")
    ranks = {token: rank for rank, token in enumerate(ranked)}
    merges: list[tuple[int, int]] = []
    for token in ranked:
        splits = ((token[:place], token[place:]) for place in range(1, len(token)))
        merges += sorted((ranks[a], ranks[b]) for a, b in splits if a in ranks and b in ranks)
    return merges


def _entry(entry: object, key: str, where: str) -> tuple[int, str]:
    rank = entry.get("rank") if isinstance(entry, dict) else None
    text = entry.get(key) if isinstance(entry, dict) else None
    if isinstance(rank, bool) or not isinstance(rank, int) or not isinstance(text, str):
        raise _Fault(f"{where}: {shown(entry)} is not a token with its rank and {key}")
    return rank, text


def _count(config: Mapping[str, Any], key: str) -> int | None:
    value = config.get(key)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        raise _Fault(f"config: {key} must be a count, not {shown(value)}")
    return value
