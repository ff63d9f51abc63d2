"""The stages that turn pieces into text as they come: one small machine for each kind of decoder.

A stage gives text as soon as no later piece can change it, and holds what is not yet certain: an
incomplete character, a run of bytes, the spaces that may be the text's last. What it gives says
whose text it is: a piece comes with a number, and a character is the piece's that completes it.
"""

from __future__ import annotations

import codecs
import re
from collections import deque
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Protocol

from weights.byte_level import byte_alphabet

REPLACEMENT = "\ufffd"
BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


Segment = tuple[int, str]  # the number of the piece that the text is of, and the text


class Stage(Protocol):
    """One decoder's streaming form. Pieces are numbered in rising order, not always by one.

    ``holding`` says that text of pieces already fed may still come.
    """

    @property
    def holding(self) -> bool: ...

    def feed(self, number: int, piece: str) -> Sequence[Segment]: ...

    def flush(self) -> Sequence[Segment]: ...


class StageSpec(Protocol):
    """Makes a stage. ``first`` says that no text stands before the first piece."""

    def start(self, *, first: bool) -> Stage: ...


class Unheld:
    """What a stage that keeps no text is."""

    @property
    def holding(self) -> bool:
        return False

    def flush(self) -> Sequence[Segment]:
        return ()


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
        self._last = 0  # the number of the last piece of what is held

    @classmethod
    def start(cls, *, first: bool) -> ByteLevel:
        return cls(first=first)

    @property
    def holding(self) -> bool:
        return bool(self._utf8.getstate()[0])

    def feed(self, number: int, piece: str) -> Sequence[Segment]:
        spelled = byte_level_bytes(piece)
        held = self._utf8.getstate()[0]
        text = self._utf8.decode(spelled)
        before, self._last = self._last, number
        if not text:
            return ()
        if held and not _completes(held, spelled):  # one U+FFFD for what was held
            return ((before, text[:1]), (number, text[1:]))
        return ((number, text),)

    def flush(self) -> Sequence[Segment]:
        text = self._utf8.decode(b"", True)
        return ((self._last, text),) if text else ()


def _completes(held: bytes, more: bytes) -> bool:
    """Whether the character that ``held`` begins ends in ``more``."""
    length = 2 if held[0] < 0xE0 else 3 if held[0] < 0xF0 else 4
    try:
        return len((held + more)[:length].decode()) == 1
    except UnicodeDecodeError:
        return False


class ByteFallback:
    """Pieces <0xNN> are bytes. A run of them is text only as a whole: if any of it is not UTF-8,
    all of it is replaced. So a run is held until it ends."""

    def __init__(self) -> None:
        self._run = bytearray()
        self._numbers: list[int] = []  # of each byte's piece

    @classmethod
    def start(cls, *, first: bool) -> ByteFallback:
        return cls()

    @property
    def holding(self) -> bool:
        return bool(self._run)

    def feed(self, number: int, piece: str) -> Sequence[Segment]:
        byte = BYTE_PIECE.fullmatch(piece)
        if byte:
            self._run.append(int(byte[1], 16))
            self._numbers.append(number)
            return ()
        return (*self.flush(), (number, piece))

    def flush(self) -> Sequence[Segment]:
        if not self._run:
            return ()
        run, numbers = bytes(self._run), self._numbers
        self._run, self._numbers = bytearray(), []
        try:
            text = run.decode()
        except UnicodeDecodeError:
            return [(number, REPLACEMENT) for number in numbers]
        segments: list[Segment] = []
        end = 0
        for character in text:
            end += len(character.encode())
            segments.append((numbers[end - 1], character))
        return segments


class Replace(Unheld):
    """Replaces a literal string inside each piece."""

    def __init__(self, pattern: str, content: str) -> None:
        self._pattern = pattern
        self._content = content

    def start(self, *, first: bool) -> Replace:
        return self  # it keeps nothing between pieces

    def feed(self, number: int, piece: str) -> Sequence[Segment]:
        return ((number, piece.replace(self._pattern, self._content)),)


class Fuse(Unheld):
    """Joins the pieces into one. As a stream it changes nothing but what follows: see StripText."""

    @classmethod
    def start(cls, *, first: bool) -> Fuse:
        return cls()

    def feed(self, number: int, piece: str) -> Sequence[Segment]:
        return ((number, piece),)


class StripPieces(Unheld):
    """Strips up to ``start`` and ``stop`` of one character from the ends of each piece."""

    def __init__(self, content: str, start: int, stop: int) -> None:
        self._content = content
        self._start = start
        self._stop = stop

    def start(self, *, first: bool) -> StripPieces:
        return self

    def feed(self, number: int, piece: str) -> Sequence[Segment]:
        head = _run_length(piece, self._content, self._start)
        tail = _run_length(piece[::-1], self._content, self._stop)
        return ((number, piece[head : max(head, len(piece) - tail)]),)


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
        self._held: deque[int] = deque()  # the piece of each character that may be the last

    @property
    def holding(self) -> bool:
        return bool(self._held)

    def feed(self, number: int, piece: str) -> Sequence[Segment]:
        cut = _run_length(piece, self._content, self._head)
        self._head = self._head - cut if cut == len(piece) else 0
        piece = piece[cut:]
        if not self._stop:
            return ((number, piece),)
        tail = _run_length(piece[::-1], self._content, len(piece))
        given: list[Segment] = []
        if tail < len(piece):
            given = [(held, self._content) for held in self._held]
            given.append((number, piece[: len(piece) - tail]))
            self._held.clear()
        self._held.extend([number] * tail)
        while len(self._held) > self._stop:
            given.append((self._held.popleft(), self._content))
        return given

    def flush(self) -> Sequence[Segment]:
        self._held.clear()
        return ()


def _run_length(text: str, character: str, most: int) -> int:
    """How many times ``character`` begins ``text``, counted up to ``most``."""
    count = 0
    while count < min(most, len(text)) and text[count] == character:
        count += 1
    return count
