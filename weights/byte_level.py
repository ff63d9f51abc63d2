"""GPT-2's spelling of bytes as characters, in which byte-level tokenizers write their pieces."""

from __future__ import annotations

# Printable Latin-1 stands for itself, the other bytes for the characters from U+0100 on, in order.
_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))


def byte_alphabet() -> tuple[str, ...]:
    """The character that stands for each byte 0..255."""
    others = iter(range(0x100, 0x200))
    return tuple(chr(byte if byte in _PRINTABLE else next(others)) for byte in range(256))
