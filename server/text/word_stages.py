"""Decoder stages that put spaces between words; as in server.text.stages, small machines."""

from __future__ import annotations

from collections.abc import Sequence

from server.text.stages import Segment, Unheld


class Metaspace:
    """The replacement character stands for a space; the first piece's are only a mark."""

    def __init__(self, replacement: str, drops_first: bool) -> None:
        self._replacement = replacement
        self._drops_first = drops_first

    def start(self, *, first: bool) -> _MetaspaceStream:
        return _MetaspaceStream(self._replacement, first and self._drops_first)


class _MetaspaceStream(Unheld):
    def __init__(self, replacement: str, drop: bool) -> None:
        self._replacement = replacement
        self._drop = drop

    def feed(self, number: int, piece: str) -> Sequence[Segment]:
        space = "" if self._drop else " "
        self._drop = False
        return ((number, piece.replace(self._replacement, space)),)


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


class _WordPieceStream(Unheld):
    def __init__(self, prefix: str, cleanup: Sequence[tuple[str, str]], first: bool) -> None:
        self._prefix = prefix
        self._cleanup = cleanup
        self._first = first

    def feed(self, number: int, piece: str) -> Sequence[Segment]:
        if not self._first:
            continues = piece.startswith(self._prefix)
            piece = piece[len(self._prefix) :] if continues else f" {piece}"
        self._first = False
        for pattern, content in self._cleanup:
            piece = piece.replace(pattern, content)
        return ((number, piece),)


class WordEnds:
    """Pieces carry a suffix at the end of a word: a space, except at the end of the text."""

    def __init__(self, suffix: str) -> None:
        self._suffix = suffix

    def start(self, *, first: bool) -> _WordEndsStream:
        return _WordEndsStream(self._suffix)


class _WordEndsStream:
    def __init__(self, suffix: str) -> None:
        self._suffix = suffix
        self._held: Segment | None = None

    @property
    def holding(self) -> bool:
        return self._held is not None

    def feed(self, number: int, piece: str) -> Sequence[Segment]:
        before = self._take(" ")
        self._held = number, piece
        return before

    def flush(self) -> Sequence[Segment]:
        return self._take("")

    def _take(self, space: str) -> Sequence[Segment]:
        if self._held is None:
            return ()
        number, piece = self._held
        self._held = None
        return ((number, piece.replace(self._suffix, space)),)


class Spaced:
    """What the library does without a decoder: a space between pieces."""

    def start(self, *, first: bool) -> _WordPieceStream:
        return _WordPieceStream("\0", (), first)
