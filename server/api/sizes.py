"""Bytes that a request takes in the API process, at most, as its body becomes token ids.

Measured on CPython 3.11 with tokenizers 0.22; a test holds those of parsing to be bounds.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

from server.api.json_shape import SPLIT_BYTES, JsonShape

# Of a body that arrives: its buffer grows by an eighth more than it needs.
BODY_SHARE = 9 / 8
# A list or an object with its slots, its keys apart: an object of one key has 8 places.
CONTAINER_BYTES = 300
# A number, or a string without its characters, with the slot that it lies in.
VALUE_BYTES = 72
# A character of a chat's JSON: written and sent to the template's worker, read and written there,
# read back; some fourteen copies of it are alive in the two processes at once.
RENDER_BYTES = 14
# A byte of UTF-8 while it is tokenised. Most where every character is a piece of its own, as digits
# are in many a vocabulary: 430 measured; 110 to 270 with the pieces of ordinary text.
TOKENISE_BYTES = 450
TOKEN_BYTES = 40  # an id in a tuple: 8 bytes there, 32 of its own
# A byte of what is split between its quotes at once: most where nothing is between them.
SPLIT_SHARE = 64
_CONTINUATION = bytes(range(0x80, 0xC0))
_ONE_OR_TWO_WIDE = bytes(range(0xF0))
_ONE_WIDE = bytes(range(0xC4))


def counting_bytes(body: bytes) -> int:
    """What server.api.json_shape needs to measure a body."""
    return 4 * len(body) + SPLIT_SHARE * min(len(body), SPLIT_BYTES)


def parsing_bytes(body: bytes, shape: JsonShape) -> int:
    """The body's text, the strings in it and the objects that hold them."""
    text = len(body.translate(None, _CONTINUATION)) * _width(body)
    return 2 * text + shape.containers * CONTAINER_BYTES + shape.values * VALUE_BYTES


def _width(body: bytes) -> int:
    """Bytes of a character in a string: of the widest one, for all of them."""
    if body.isascii() and b"\\u" not in body:
        return 1
    if b"\\u" in body or body.translate(None, _ONE_OR_TWO_WIDE):
        return 4
    return 2 if body.translate(None, _ONE_WIDE) else 1


def rendering_bytes(messages: object) -> int:
    """A chat's way through its template's worker, where the text is about as long as the chat."""
    return RENDER_BYTES * _json_length(messages)


def _json_length(value: object) -> int:
    """Characters, at most, of a value of strings: what is not ASCII is written as \\uXXXX."""
    if isinstance(value, str):
        return (2 * len(value) if value.isascii() else 3 * len(value.encode())) + 4
    if isinstance(value, Mapping):
        return 2 + sum(_json_length(key) + _json_length(item) for key, item in value.items())
    if isinstance(value, tuple | list):
        return 2 + sum(map(_json_length, value))
    return 32


def tokenising_bytes(text: str) -> int:
    return TOKENISE_BYTES * (len(text) if text.isascii() else len(text.encode()))


def held_bytes(value: object) -> int:
    """The size of a value's objects, all the way down. Of a tuple of ids, each counts alike."""
    size = sys.getsizeof(value)
    if isinstance(value, Mapping):
        return size + sum(held_bytes(key) + held_bytes(item) for key, item in value.items())
    if isinstance(value, tuple | list):
        if value and isinstance(value[0], int):
            return size + (TOKEN_BYTES - 8) * len(value)
        return size + sum(held_bytes(item) for item in value)
    return size
