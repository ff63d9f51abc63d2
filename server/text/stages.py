"""The stages that turn pieces into text as they come: one small machine for each kind of decoder.

A stage gives text as soon as no later piece can change it, and holds what is not yet certain: an
incomplete character, a run of bytes, the spaces that may be the text's last.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Protocol

from weights.byte_level import byte_alphabet

REPLACEMENT = "\ufffd"
BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Stage(Protocol):
    """One decoder's streaming form. ``first`` says that no text stands before the first piece."""

    def feed(self, piece: str) -> Sequence[str]: ...

    def flush(self) -> Sequence[str]: ...


class StageSpec(Protocol):
    def start(self, *, first: bool) -> Stage: ...


@lru_cache(maxsize=1)
def byte_of_character() -> Mapping[str, int]:
    """The byte of each character that stands for one."""
    return {character: byte for byte, character in enumerate(byte_alphabet())}


def byte_level_bytes(piece: str) -> bytes:
    """The bytes of a byte-level piece; a piece spelled otherwise is plain text."""
    table = byte_of_character()
    try:
        return bytes([table[character] for character in piece])
    except KeyError:
        return piece.encode()


class ByteLevel:
    """Pieces spell bytes. Incomplete UTF-8 at the end is held."""

    def __init__(self, *, first: bool = True) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    @classmethod
    def start(cls, *, first: bool) -> ByteLevel:
        return cls(first=first)

    def feed(self, piece: str) -> Sequence[str]:
        text = self._utf8.decode(byte_level_bytes(piece))
        return (text,) if text else ()

    def flush(self) -> Sequence[str]:
        text = self._utf8.decode(b"", True)
        return (text,) if text else ()


class ByteFallback:
    """Pieces <0xNN> are bytes. A run of them is text only as a whole: if any of it is not UTF-8,
    all of it is replaced. So a run is held until it ends."""

    def __init__(self) -> None:
        self._run = bytearray()

    @classmethod
    def start(cls, *, first: bool) -> ByteFallback:
        return cls()

    def feed(self, piece: str) -> Sequence[str]:
        byte = BYTE_PIECE.fullmatch(piece)
        if byte:
            self._run.append(int(byte[1], 16))
            return ()
        return (*self.flush(), piece)

    def flush(self) -> Sequence[str]:
        if not self._run:
            return ()
        run = bytes(self._run)
        self._run.clear()
        try:
            return (run.decode(),)
        except UnicodeDecodeError:
            return (REPLACEMENT,) * len(run)


class Replace:
    """Replaces a literal string inside each piece."""

    def __init__(self, pattern: str, content: str) -> None:
        self._pattern = pattern
        self._content = content

    def start(self, *, first: bool) -> Replace:
        return self  # it keeps nothing between pieces

    def feed(self, piece: str) -> Sequence[str]:
        return (piece.replace(self._pattern, self._content),)

    def flush(self) -> Sequence[str]:
        return ()


class Fuse:
    """Joins the pieces into one. As a stream it changes nothing but what follows: see StripText."""

    @classmethod
    def start(cls, *, first: bool) -> Fuse:
        return cls()

    def feed(self, piece: str) -> Sequence[str]:
        return (piece,)

    def flush(self) -> Sequence[str]:
        return ()


class StripPieces:
    """Strips up to ``start`` and ``stop`` of one character from the ends of each piece."""

    def __init__(self, content: str, start: int, stop: int) -> None:
        self._content = content
        self._start = start
        self._stop = stop

    def start(self, *, first: bool) -> StripPieces:
        return self

    def feed(self, piece: str) -> Sequence[str]:
        head = _run_length(piece, self._content, self._start)
        tail = _run_length(piece[::-1], self._content, self._stop)
        return (piece[head : max(head, len(piece) - tail)],)

    def flush(self) -> Sequence[str]:
        return ()


class StripText:
    """The same over the whole fused text: its head once, its tail held until the end."""

    def __init__(self, content: str, start: int, stop: int) -> None:
        self._content = content
        self._start = start
        self._stop = stop

    def start(self, *, first: bool) -> _StripTextStream:
        return _StripTextStream(self._content, self._start if first else 0, self._stop)


class _StripTextStream:
    def __init__(self, content: str, head: int, stop: int) -> None:
        self._content = content
        self._head = head
        self._stop = stop
        self._held = ""

    def feed(self, piece: str) -> Sequence[str]:
        cut = _run_length(piece, self._content, self._head)
        self._head = self._head - cut if cut == len(piece) else 0
        text = self._held + piece[cut:]
        keep = len(text) - _run_length(text[::-1], self._content, self._stop)
        self._held = text[keep:]
        return (text[:keep],)

    def flush(self) -> Sequence[str]:
        self._held = ""
        return ()


class Metaspace:
    """The replacement character stands for a space; the first piece's are only a mark."""

    def __init__(self, replacement: str, drops_first: bool) -> None:
        self._replacement = replacement
        self._drops_first = drops_first

    def start(self, *, first: bool) -> _MetaspaceStream:
        return _MetaspaceStream(self._replacement, first and self._drops_first)


class _MetaspaceStream:
    def __init__(self, replacement: str, drop: bool) -> None:
        self._replacement = replacement
        self._drop = drop

    def feed(self, piece: str) -> Sequence[str]:
        space = "" if self._drop else " "
        self._drop = False
        return (piece.replace(self._replacement, space),)

    def flush(self) -> Sequence[str]:
        return ()


class WordPiece:
    """Words stand apart unless marked as continuing; ``cleanup`` closes up punctuation."""

    CLEANUP = (
        (" .", "."),
        (" ?", "?"),
        (" !", "!"),
        (" ,", ","),
        (" ' ", "'"),
        (" n't", "n't"),
        (" 'm", "'m"),
        (" do not", " don't"),
        (" 's", "'s"),
        (" 've", "'ve"),
        (" 're", "'re"),
    )

    def __init__(self, prefix: str, cleanup: bool) -> None:
        self._prefix = prefix
        self._cleanup = cleanup

    def start(self, *, first: bool) -> _WordPieceStream:
        return _WordPieceStream(self._prefix, self.CLEANUP if self._cleanup else (), first)


class _WordPieceStream:
    def __init__(self, prefix: str, cleanup: Sequence[tuple[str, str]], first: bool) -> None:
        self._prefix = prefix
        self._cleanup = cleanup
        self._first = first

    def feed(self, piece: str) -> Sequence[str]:
        if not self._first:
            continues = piece.startswith(self._prefix)
            piece = piece[len(self._prefix) :] if continues else f" {piece}"
        self._first = False
        for pattern, content in self._cleanup:
            piece = piece.replace(pattern, content)
        return (piece,)

    def flush(self) -> Sequence[str]:
        return ()


class WordEnds:
    """Pieces carry a suffix at the end of a word: a space, except at the end of the text."""

    def __init__(self, suffix: str) -> None:
        self._suffix = suffix

    def start(self, *, first: bool) -> _WordEndsStream:
        return _WordEndsStream(self._suffix)


class _WordEndsStream:
    def __init__(self, suffix: str) -> None:
        self._suffix = suffix
        self._held: str | None = None

    def feed(self, piece: str) -> Sequence[str]:
        before, self._held = self._held, piece
        return () if before is None else (before.replace(self._suffix, " "),)

    def flush(self) -> Sequence[str]:
        last, self._held = self._held, None
        return () if last is None else (last.replace(self._suffix, ""),)


class Spaced:
    """What the library does without a decoder: a space between pieces."""

    def start(self, *, first: bool) -> _WordPieceStream:
        return _WordPieceStream("\0", (), first)


def _run_length(text: str, character: str, most: int) -> int:
    """How many times ``character`` begins ``text``, counted up to ``most``."""
    count = 0
    while count < min(most, len(text)) and text[count] == character:
        count += 1
    return count
