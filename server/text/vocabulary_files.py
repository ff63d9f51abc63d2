"""The file that a folder's tokenizer is made from: tokenizer.json, vocab.json with merges.txt, a
SentencePiece model, or Mistral's tekken.json.

tokenizer.json and tekken.json say how text is split and decoded. vocab.json holds no more than a
vocabulary, so that a class has to say the rest (tokenizer_recipes.py); a SentencePiece model says
most of it. The conversion is in memory, at start.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tokenizers

from server.errors import StartupError
from server.text.sentencepiece_model import (
    MAX_BYTES,
    SentencePieceModel,
    read_sentencepiece_model,
)
from server.text.tekken import TEKKEN_FILE, TEKKEN_NAMES, read_tekken
from server.text.tokenizer_recipes import SENTENCEPIECE_FILE, VOCAB_FILE, Vocabulary
from weights.checkpoint.folder import inside, read_json
from weights.errors import CheckpointError
from weights.strict_json import shown

TOKENIZER_FILE = "tokenizer.json"
SENTENCEPIECE_FILES = (SENTENCEPIECE_FILE, "spiece.model")
MERGES_FILE = "merges.txt"
_MAX_PIECES = 4_000_000
# Vocabularies of other kinds, and what they are.
_OTHER_KINDS = {
    "tiktoken.model": "a tiktoken file",
    "qwen.tiktoken": "a tiktoken file",
    "vocab.txt": "a WordPiece vocabulary",
}
_TIKTOKEN_LINE = re.compile(rb"[A-Za-z0-9+/]+=* \d+\r?\n")


@dataclass(frozen=True, slots=True)
class Trunk:
    """What the folder's main tokenizer file says. ``pipeline`` is all that it says; None where
    the files hold little but a vocabulary. ``added`` are tokenizer.json's added tokens. ``read``
    gives the vocabulary; of tokenizer.json few classes need it, of a SentencePiece ``model`` it
    lacks the merges. ``named`` are special tokens by name, as the file has them."""

    file: str
    read: Callable[[], Vocabulary]
    pipeline: tokenizers.Tokenizer | None = None
    model: SentencePieceModel | None = None
    added: Sequence[Mapping[str, Any]] = ()
    named: Mapping[str, str | None] = field(default_factory=dict)
    is_byte_level: bool = False


def find_trunk(folder: Path) -> Trunk:
    """The folder's tokenizer file, read.

    Raises:
        StartupError: there is none that can be converted, or it is malformed; names it. Of
            tokenizer.json the library's own errors come through.
    """
    try:
        if os.path.lexists(folder / TOKENIZER_FILE):
            return _of_tokenizer_json(folder)
        there = {name for name in (VOCAB_FILE, MERGES_FILE) if os.path.lexists(folder / name)}
        if len(there) == 2:
            vocabulary = _vocabulary_of_files(folder)
            return Trunk(f"{VOCAB_FILE} and {MERGES_FILE}", lambda: vocabulary)
        if os.path.lexists(folder / TEKKEN_FILE):
            pipeline, ids = read_tekken(folder)
            named = {name: text for name, text in TEKKEN_NAMES.items() if text in ids}
            return Trunk(TEKKEN_FILE, lambda: Vocabulary(ids, ()), pipeline, named=named)
        for file in SENTENCEPIECE_FILES:
            if os.path.lexists(folder / file):
                return _of_sentencepiece(folder, file)
    except CheckpointError as error:
        raise StartupError(str(error)) from None
    raise StartupError(_missing(folder, there))


def command(folder: Path) -> str:
    """What makes a tokenizer.json of whatever the folder holds, for messages."""
    path = shlex.quote(str(folder))
    return (
        'python -c "import sys; from transformers import AutoTokenizer; '
        'AutoTokenizer.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[1])" ' + path
    )


def _missing(folder: Path, there: set[str]) -> str:
    told = f"{TOKENIZER_FILE} is missing from {folder.name}"
    made = f"On a machine with transformers this makes it: {command(folder)}"
    if there:
        (one,) = there
        (other,) = {VOCAB_FILE, MERGES_FILE} - there
        return f"{told}, and {one} is nothing without {other}, which is missing too. Add that file"
    for name, kind in _OTHER_KINDS.items():
        if os.path.lexists(folder / name):
            return f"{told}, and {name} ({kind}) is not converted. {made}"
    return (
        f"{told}, and so are {VOCAB_FILE} and {MERGES_FILE}, and {SENTENCEPIECE_FILE}. "
        "Copy the tokenizer's files of the model's repository into the folder"
    )


def _of_tokenizer_json(folder: Path) -> Trunk:
    text = inside(folder, TOKENIZER_FILE).read_text(encoding="utf-8")
    pipeline = tokenizers.Tokenizer.from_str(text)
    trunk = json.loads(text)
    return Trunk(
        TOKENIZER_FILE,
        lambda: _vocabulary(trunk["model"]),
        pipeline,
        added=trunk.get("added_tokens") or (),
        is_byte_level='"ByteLevel"' in text,
    )


def _vocabulary(model: Mapping[str, Any]) -> Vocabulary:
    """Pieces and merges of a tokenizer.json's "model", in any of its spellings."""
    pieces, merges = model["vocab"], model.get("merges") or ()
    if isinstance(pieces, list):  # Unigram's: [piece, score]
        pieces = {piece: id for id, (piece, _) in enumerate(pieces)}
    pairs: list[Any] = [
        tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in merges
    ]
    return Vocabulary(pieces, pairs)


def _of_sentencepiece(folder: Path, file: str) -> Trunk:
    path = inside(folder, file)
    if path.stat().st_size > MAX_BYTES:
        raise CheckpointError(f"{file}: it is above {MAX_BYTES} bytes")
    data = path.read_bytes()
    if _TIKTOKEN_LINE.match(data):
        raise CheckpointError(
            f"{file}: it is a tiktoken file and not a SentencePiece model, and is not converted. "
            f"On a machine with transformers and tiktoken this makes {TOKENIZER_FILE}: "
            f"{command(folder)}"
        )
    model = read_sentencepiece_model(data, file)
    return Trunk(file, lambda: Vocabulary(model.ids(), ()), model=model, named=model.named)


def _vocabulary_of_files(folder: Path) -> Vocabulary:
    pieces = read_json(folder, VOCAB_FILE, MAX_BYTES, _MAX_PIECES)
    owners: dict[int, str] = {}
    for piece, id in pieces.items():
        if isinstance(id, bool) or not isinstance(id, int) or not 0 <= id < 1 << 31:
            raise CheckpointError(f"{VOCAB_FILE}: {shown(piece)} must have an id, not {shown(id)}")
        other = owners.setdefault(id, piece)
        if other != piece:
            raise CheckpointError(
                f"{VOCAB_FILE}: {shown(piece)} and {shown(other)} have the same id {id}"
            )
    if not pieces:
        raise CheckpointError(f"{VOCAB_FILE}: it has no tokens")
    return Vocabulary(pieces, _merges(folder, pieces))


def _merges(folder: Path, pieces: Mapping[str, int]) -> Sequence[tuple[str, str]]:
    """The pairs of merges.txt, each of two pieces that make a third. Lines that begin with #version
    are comments, as they are to the library."""
    path = inside(folder, MERGES_FILE)
    if path.stat().st_size > MAX_BYTES:
        raise CheckpointError(f"{MERGES_FILE}: it is above {MAX_BYTES} bytes")
    try:
        lines = path.read_bytes().decode("utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{MERGES_FILE}: is not UTF-8 at byte {error.start}") from None
    pairs: list[tuple[str, str]] = []
    for number, line in enumerate(lines, 1):
        line = line.removesuffix("\r")
        if (not line and number == len(lines)) or line.startswith("#version"):
            continue
        left, _, right = line.partition(" ")
        if not left or not right or " " in right:
            raise CheckpointError(
                f"{MERGES_FILE}: line {number}, {shown(line)}, is not two pieces with a space "
                "between them"
            )
        for piece in (left, right, left + right):
            if piece not in pieces:
                raise CheckpointError(
                    f"{MERGES_FILE}: line {number} merges {shown(left)} and {shown(right)}, but "
                    f"{VOCAB_FILE} has no {shown(piece)}: the two are not of one model"
                )
        pairs.append((left, right))
    return pairs
