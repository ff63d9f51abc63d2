"""A SentencePiece .model file, read strictly: the pieces, and how text is normalized before them.

The file is a protocol buffer (sentencepiece_model.proto). What is needed of it is three messages of
plain fields, so they are read here: no library runs over a stranger's file, and none is a
dependency. What the format knows and is not served is refused by name.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from weights.errors import CheckpointError
from weights.strict_json import shown

MAX_BYTES = 64 << 20
_MAX_PIECES = 2_000_000
_MAX_PIECE_CHARACTERS = 1024
_KINDS = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_BYTE_PIECES = frozenset(f"<0x{byte:02X}>" for byte in range(256))


class PieceType(IntEnum):
    """How a piece is used; the numbers are the format's."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class Piece:
    text: str
    score: float = 0.0
    type: PieceType = PieceType.NORMAL


@dataclass(frozen=True, slots=True)
class SentencePieceModel:
    """``pieces`` are by id. ``charsmap`` is the precompiled normalization, empty where there is
    none. ``named`` are the texts of bos_token, eos_token and unk_token, where the file has them."""

    pieces: tuple[Piece, ...]
    is_unigram: bool
    byte_fallback: bool
    charsmap: bytes
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    unk_id: int
    named: dict[str, str | None] = field(default_factory=dict)

    def ids(self) -> dict[str, int]:
        """Every piece's id."""
        return {piece.text: id for id, piece in enumerate(self.pieces)}


# Fields that are read, by message: number -> (name, wire type).
_MODEL = {
    1: ("pieces", _BYTES),
    2: ("trainer_spec", _BYTES),
    3: ("normalizer_spec", _BYTES),
    5: ("denormalizer_spec", _BYTES),
}
_PIECE = {1: ("piece", _BYTES), 2: ("score", _FIXED32), 3: ("type", _VARINT)}
_TRAINER = {
    3: ("model_type", _VARINT),
    24: ("treat_whitespace_as_suffix", _VARINT),
    35: ("byte_fallback", _VARINT),
    41: ("bos_id", _VARINT),
    42: ("eos_id", _VARINT),
    45: ("unk_piece", _BYTES),
    46: ("bos_piece", _BYTES),
    47: ("eos_piece", _BYTES),
}
_NORMALIZER = {
    2: ("precompiled_charsmap", _BYTES),
    3: ("add_dummy_prefix", _VARINT),
    4: ("remove_extra_whitespaces", _VARINT),
    5: ("escape_whitespaces", _VARINT),
}


def read_sentencepiece_model(data: bytes, file: str) -> SentencePieceModel:
    """The model that ``data`` is, whole or not at all.

    Raises:
        CheckpointError: it is malformed, or asks for what is not served; begins with ``file``.
    """
    try:
        return _read(data)
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from None


def _read(data: bytes) -> SentencePieceModel:
    pieces: list[Piece] = []
    trainer: dict[str, Any] = {}
    normalizer: dict[str, Any] = {}
    for name, value in _fields(data, _MODEL, "the model"):
        if name == "pieces":
            if len(pieces) == _MAX_PIECES:
                raise CheckpointError(f"has more than {_MAX_PIECES} pieces")
            pieces.append(_piece(value, len(pieces)))
        elif name == "trainer_spec":
            trainer.update(_fields(value, _TRAINER, name))
        elif name == "normalizer_spec":
            normalizer.update(_fields(value, _NORMALIZER, name))
        elif dict(_fields(value, _NORMALIZER, name)).get("precompiled_charsmap"):
            raise CheckpointError("denormalizer_spec changes what is decoded, which is not served")
    _check_pieces(pieces, byte_fallback=bool(trainer.get("byte_fallback")))
    kind = _KINDS.get(trainer.get("model_type", 1), "unknown")
    if kind not in ("unigram", "bpe"):
        raise CheckpointError(f"is of the type {kind}; unigram and bpe are served")
    for told, on in (
        ("treat_whitespace_as_suffix", trainer.get("treat_whitespace_as_suffix", 0)),
        ("escape_whitespaces off", not normalizer.get("escape_whitespaces", 1)),
    ):
        if on:
            raise CheckpointError(f"{told} is not served")
    return SentencePieceModel(
        pieces=tuple(pieces),
        is_unigram=kind == "unigram",
        byte_fallback=bool(trainer.get("byte_fallback")),
        charsmap=bytes(normalizer.get("precompiled_charsmap", b"")),
        add_dummy_prefix=bool(normalizer.get("add_dummy_prefix", 1)),
        remove_extra_whitespaces=bool(normalizer.get("remove_extra_whitespaces", 1)),
        unk_id=next(id for id, one in enumerate(pieces) if one.type is PieceType.UNKNOWN),
        named=_named(trainer),
    )


def _named(trainer: dict[str, Any]) -> dict[str, str | None]:
    """Special tokens by name; an id of -1 says that there is none of the name."""
    named: dict[str, str | None] = {"unk_token": _text(trainer.get("unk_piece", b"<unk>"))}
    for name, id, text in (("bos", 1, b"<s>"), ("eos", 2, b"</s>")):
        given = trainer.get(f"{name}_id", id)
        if given < 1 << 31:  # a negative number is written as one of 64 bits
            named[f"{name}_token"] = _text(trainer.get(f"{name}_piece", text))
    return named


def _piece(data: bytes, id: int) -> Piece:
    where = f"piece {id}"
    facts = dict(_fields(data, _PIECE, where))
    text, score = _text(facts.get("piece", b""), where), facts.get("score", 0.0)
    if not text or len(text) > _MAX_PIECE_CHARACTERS:
        raise CheckpointError(
            f"{where} has {len(text)} characters; 1 to {_MAX_PIECE_CHARACTERS} are read"
        )
    if not math.isfinite(score):
        raise CheckpointError(f"{where}, {shown(text)}, has a score that is not finite")
    try:
        return Piece(text, score, PieceType(facts.get("type", 1)))
    except ValueError:
        raise CheckpointError(f"{where}, {shown(text)}, has no known type") from None


def _check_pieces(pieces: list[Piece], *, byte_fallback: bool) -> None:
    if not pieces:
        raise CheckpointError("has no pieces")
    owners: dict[str, int] = {}
    for id, piece in enumerate(pieces):
        other = owners.setdefault(piece.text, id)
        if other != id:
            raise CheckpointError(f"pieces {other} and {id} are both {shown(piece.text)}")
        if piece.type is PieceType.UNUSED:
            raise CheckpointError(f"piece {id}, {shown(piece.text)}, is unused: this is not served")
    unknown = sum(piece.type is PieceType.UNKNOWN for piece in pieces)
    if unknown != 1:
        raise CheckpointError(f"has {unknown} pieces for what is unknown; it must have one")
    if byte_fallback:
        found = {piece.text for piece in pieces if piece.type is PieceType.BYTE}
        if found != _BYTE_PIECES:
            raise CheckpointError(f"has byte_fallback and {len(found)} pieces for the 256 bytes")


def _text(data: bytes, where: str = "trainer_spec") -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise CheckpointError(f"{where} is not UTF-8") from None


def _fields(
    data: bytes, known: dict[int, tuple[str, int]], where: str
) -> Iterator[tuple[str, Any]]:
    """The fields of a message that ``known`` has, as they come; others are passed over."""
    position, end = 0, len(data)
    while position < end:
        tag, position = _varint(data, position, where)
        number, wire = tag >> 3, tag & 7
        value: Any
        if wire == _VARINT:
            value, position = _varint(data, position, where)
        elif wire in (_BYTES, _FIXED32, _FIXED64):
            size = 4 if wire == _FIXED32 else 8
            if wire == _BYTES:
                size, position = _varint(data, position, where)
            if size > end - position:
                raise CheckpointError(f"{where} is cut off at byte {end}: the file is not whole")
            value = data[position : position + size]
            position += size
        else:
            raise CheckpointError(f"{where} has a field of wire type {wire}: it is no such message")
        if number in known:
            name, expected = known[number]
            if wire != expected:
                raise CheckpointError(f"{where}: {name} has wire type {wire}, not {expected}")
            yield name, struct.unpack("<f", value)[0] if wire == _FIXED32 else value


def _varint(data: bytes, position: int, where: str) -> tuple[int, int]:
    value = shift = 0
    while shift < 64:
        if position >= len(data):
            raise CheckpointError(f"{where} is cut off at byte {position}: the file is not whole")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise CheckpointError(f"{where} has a number of more than 64 bits")
