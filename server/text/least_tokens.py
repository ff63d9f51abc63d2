"""How few tokens can carry a text: told from its length alone, for tokenizers where that is true.

A text goes through a normalizer, is cut at added tokens and by a pre-tokenizer, and the model
spells each cut. Where every step keeps or lengthens what it gets (or shortens it by a known factor)
and the model makes a token for every character that it cannot spell, n characters need n / longest
tokens at least, ``longest`` being the longest piece. Where a step may drop text or join any amount
of it into one token (an unknown word as one id), length tells nothing; where it is only spaces
that may go, the other characters count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.text.stages import byte_of_character
from server.units import ceil_div

# Most characters that one composed character is of: Unicode Standard Annex 15, table 1.
_COMPOSED = 4
_BYTE_PIECES = [f"<0x{byte:02X}>" for byte in range(256)]
_SPACES = [chr(code) for code in range(0x3001) if chr(code).isspace()]  # all that Unicode has
_SPACE_DROPPING = ("Whitespace", "WhitespaceSplit", "BertPreTokenizer")


@dataclass(frozen=True, slots=True)
class LeastTokens:
    """A text of n units makes n / ``units_per_token`` tokens at least. A unit is a byte of UTF-8
    (``in_bytes``) or a character; spaces are none where something may drop them."""

    units_per_token: int
    in_bytes: bool
    drops_spaces: bool

    def of(self, text: str) -> int:
        units = _size(text, in_bytes=self.in_bytes)
        if self.drops_spaces:
            spaces = (space for space in _SPACES if space.isascii() or not text.isascii())
            units -= sum(
                text.count(space) * _size(space, in_bytes=self.in_bytes) for space in spaces
            )
        return ceil_div(units, self.units_per_token)


def least_tokens(pipeline: Mapping[str, Any], normalized: Sequence[str]) -> LeastTokens | None:
    """The bound of a tokenizer; None where its length tells nothing of a text's tokens.

    ``pipeline`` is its tokenizer.json, ``normalized`` the added tokens' spellings behind the
    normalizer.
    """
    normalizers = _parts(pipeline.get("normalizer"), "normalizers")
    cuts = _parts(pipeline.get("pre_tokenizer"), "pretokenizers")
    added = pipeline.get("added_tokens") or ()
    model = pipeline["model"]
    drops_spaces = (
        any(token["lstrip"] or token["rstrip"] for token in added)
        or any(part["type"] in _SPACE_DROPPING for part in cuts)
        or any(part["type"] == "Strip" for part in normalizers)
    )
    shrinking = _shrinking(normalizers, drops_spaces=drops_spaces)
    spells_bytes = any(part["type"] == "ByteLevel" for part in cuts) or (
        bool(normalizers) and normalizers[-1]["type"] == "ByteLevel"
    )
    if (
        shrinking is None
        or not all(_keeps(part) for part in cuts)
        or not _spells_everything(model, spells_bytes=spells_bytes)
    ):
        return None
    in_bytes = spells_bytes and not normalizers
    contents = (*normalized, *(token["content"] for token in added))
    longest = max(
        1,
        *(len(piece) for piece in _pieces(model)),
        *(_size(text, in_bytes=in_bytes) for text in contents),
    )
    return LeastTokens(longest * shrinking, in_bytes, drops_spaces)


def _size(text: str, *, in_bytes: bool) -> int:
    # A lone surrogate, which is refused later, counts as one byte.
    return len(text.encode(errors="replace")) if in_bytes else len(text)


def _pieces(model: Mapping[str, Any]) -> Sequence[str]:
    """A model's vocabulary: of BPE by piece, of Unigram with a score."""
    vocabulary = model["vocab"]
    if isinstance(vocabulary, list):
        return [piece for piece, _ in vocabulary]
    return list(vocabulary)


def _parts(step: Mapping[str, Any] | None, key: str) -> Sequence[Mapping[str, Any]]:
    """A step as the sequence that it is or may be."""
    if step is None:
        return ()
    if step["type"] != "Sequence":
        return (step,)
    return [part for inner in step[key] for part in _parts(inner, key)]


def _shrinking(normalizers: Sequence[Mapping[str, Any]], *, drops_spaces: bool) -> int | None:
    """How many characters become one at most; None where any number may go."""
    factor = 1
    for index, part in enumerate(normalizers):
        match part:
            case {"type": "NFC" | "NFKC"}:
                factor *= _COMPOSED
            case {"type": "NFD" | "NFKD" | "Lowercase" | "Prepend" | "Strip"}:
                pass
            case {"type": "ByteLevel"} if index == len(normalizers) - 1:
                pass
            case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)}:
                kept = len("".join(new.split())) if drops_spaces else len(new)
                if not kept:
                    return None
                factor *= max(1, ceil_div(len(old), kept))
            case _:
                return None
    return factor


def _keeps(cut: Mapping[str, Any]) -> bool:
    """Whether a pre-tokenizer drops nothing but spaces."""
    match cut:
        case {"type": "ByteLevel" | "Metaspace" | "Digits"}:
            return True
        case {"type": "Punctuation" | "Split", "behavior": behavior}:
            return bool(behavior != "Removed")
    return cut["type"] in _SPACE_DROPPING


def _spells_everything(model: Mapping[str, Any], *, spells_bytes: bool) -> bool:
    """Whether each character makes a token or is within one, be it known or not."""
    kind = model["type"]
    if kind not in ("BPE", "Unigram"):
        return False  # a word that is not known is one token, however long
    pieces = frozenset(_pieces(model))
    if model.get("byte_fallback") and pieces.issuperset(_BYTE_PIECES):
        return True
    if kind == "Unigram":
        return False  # unknown characters are one token together
    affixes = model.get("continuing_subword_prefix") or model.get("end_of_word_suffix")
    if spells_bytes and not affixes and pieces.issuperset(byte_of_character()):
        return True
    return model.get("unk_token") in pieces and not model.get("fuse_unk")
