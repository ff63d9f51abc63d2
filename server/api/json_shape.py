"""How large a JSON text will be once it is parsed, told without parsing it.

A parser makes tens of bytes and some hundred nanoseconds of work of every value, and holds the
interpreter all the while: 4 MiB of ``[],`` are 1.4 million lists. So values are counted first, by
operations of ``bytes`` alone, most over at most SLICE_BYTES: what is deleted leaves quotes,
brackets and commas, of which every second piece between two quotes is outside of strings. A text
that is no JSON gets some count too; the parser then says what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from server.errors import ErrorCode, QuireError

SLICE_BYTES = 256 * 1024
SPLIT_BYTES = 16 * 1024  # at once between quotes: each piece of some bytes is an object
_STRUCTURE = b'"[]{},'
_OTHERS = bytes(byte for byte in range(256) if byte not in _STRUCTURE)
_TO_SQUARE = bytes.maketrans(b"{}", b"[]")


@dataclass(frozen=True, slots=True)
class JsonLimits:
    """``values`` are all of a text's: numbers, strings, lists, objects and literals.

    ``containers`` are its lists and objects; ``depth`` says how many may lie in one another.
    """

    depth: int = 32
    containers: int = 65_536
    values: int = 65_536


@dataclass(frozen=True, slots=True)
class JsonShape:
    """Upper bounds of what is in a text: an empty list counts as if it had a value."""

    containers: int
    values: int


def measure(body: bytes, limits: JsonLimits) -> JsonShape:
    """Counts a body's values.

    Raises:
        QuireError: it has more than ``limits`` allow, or is nested deeper.
    """
    quoted = b"".join(_structure(body))
    # A string is a key or a value, and a key has a value.
    if quoted.count(b'"') > 4 * limits.values:
        raise _too_large("values", limits.values)
    outside = b"".join(_outside(quoted))
    containers = outside.count(b"[") + outside.count(b"{")
    if containers > limits.containers:
        raise _too_large("lists and objects", limits.containers)
    values = 1 + containers + outside.count(b",")
    if values > limits.values:
        raise _too_large("values", limits.values)
    _check_depth(outside.translate(_TO_SQUARE, b","), limits.depth)
    return JsonShape(containers, values)


def _structure(body: bytes) -> Iterator[bytes]:
    """The body's quotes, brackets and commas, without those that a backslash escapes."""
    start = 0
    while start < len(body):
        end = start + SLICE_BYTES
        part = body[start:end]
        if b"\\" in part:
            # Backslashes pair off from the left, so a cut between two pairs changes nothing.
            escapes = len(part) - len(part.rstrip(b"\\"))
            if escapes % 2 and end < len(body):
                end -= 1
                part = part[:-1]
            part = part.replace(b"\\\\", b"").replace(b'\\"', b"")
        yield part.translate(None, _OTHERS)
        start = end


def _outside(quoted: bytes) -> Iterator[bytes]:
    """What is outside of strings: every second piece between two quotes."""
    first = 0  # the piece that is: the other where a cut goes through a string
    for start in range(0, len(quoted), SPLIT_BYTES):
        pieces = quoted[start : start + SPLIT_BYTES].split(b'"')
        yield b"".join(pieces[first::2])
        first ^= (len(pieces) - 1) & 1


def _check_depth(brackets: bytes, most: int) -> None:
    """Each round takes the innermost pairs away. Brackets that do not pair are the parser's."""
    for _ in range(most):
        fewer = brackets.replace(b"[]", b"")
        if len(fewer) == len(brackets):
            break
        brackets = fewer
    if b"[]" in brackets or brackets.count(b"[") > most:
        message = f"The request body is nested deeper than {most} levels."
        raise QuireError(ErrorCode.INVALID_REQUEST, message)


def _too_large(what: str, most: int) -> QuireError:
    message = f"The request body holds more than {most} JSON {what}. Send fewer in one request."
    return QuireError(ErrorCode.INVALID_REQUEST, message)
