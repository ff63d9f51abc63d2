"""Log-probabilities: from the engine's packed arrays to the two forms that clients know."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from server.engine.step_plan import LogprobArrays
from server.text.tokenizer import Tokenizer

LEAST = -9999.0  # what OpenAI writes for a probability of zero: JSON has no infinity


# A token's log-probability (None where nothing precedes it) and the top alternatives to it.
Score = tuple[float | None, tuple[tuple[int, float], ...]]


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token of a text. ``logprob`` is None for a prompt's first token, which follows nothing.

    ``top`` are (token id, log-probability) in falling order. ``offset`` is the place in the
    choice's text, in characters, where the token's own text begins. ``name`` is what it is called
    in this place, None where that is its ``token_name``: a token that has text is called by it.
    """

    token_id: int
    logprob: float | None
    top: tuple[tuple[int, float], ...]
    offset: int
    name: str | None = None


def unpack(arrays: LogprobArrays) -> Iterator[tuple[int, float, tuple[tuple[int, float], ...]]]:
    """Each position's (token id, log-probability, top alternatives)."""
    ids, values = array("i"), array("f")
    ids.frombytes(arrays.token_ids)
    values.frombytes(arrays.logprobs)
    if sys.byteorder == "big":
        ids.byteswap()
        values.byteswap()
    width = arrays.width
    for start in range(0, arrays.num_positions * width, width):
        pairs = [
            (id, _finite(value))
            for id, value in zip(
                ids[start : start + width], values[start : start + width], strict=True
            )
        ]
        yield pairs[0][0], pairs[0][1], tuple(pairs[1:])


def _finite(value: float) -> float:
    return value if value > LEAST else LEAST  # also where it is not a number


def completion_logprobs(tokenizer: Tokenizer, entries: Sequence[TokenLogprob]) -> dict[str, Any]:
    """The form of /v1/completions. The chosen token is always among its ``top_logprobs``."""
    return {
        "tokens": [_entry_name(tokenizer, entry) for entry in entries],
        "token_logprobs": [entry.logprob for entry in entries],
        "top_logprobs": [_top_by_name(tokenizer, entry) for entry in entries],
        "text_offset": [entry.offset for entry in entries],
    }


def _top_by_name(tokenizer: Tokenizer, entry: TokenLogprob) -> dict[str, float] | None:
    if entry.logprob is None:
        return None
    named: dict[str, float] = {}
    own = _entry_name(tokenizer, entry)
    for id, logprob in entry.top:
        name = own if id == entry.token_id else token_name(tokenizer, id)
        named.setdefault(name, logprob)
    named.setdefault(own, entry.logprob)
    return named


def _entry_name(tokenizer: Tokenizer, entry: TokenLogprob) -> str:
    return token_name(tokenizer, entry.token_id) if entry.name is None else entry.name


def token_name(tokenizer: Tokenizer, token_id: int) -> str:
    """A token as text; one that is part of a character as OpenAI writes it: bytes:\\xe6\\xb7."""
    spelled = tokenizer.token_bytes(token_id)
    try:
        return spelled.decode()
    except UnicodeDecodeError:
        return bytes_name(spelled)


def bytes_name(spelled: bytes) -> str:
    """How OpenAI writes bytes that are no text."""
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelled)


def chat_logprobs(tokenizer: Tokenizer, entries: Sequence[TokenLogprob]) -> dict[str, Any]:
    """The form of /v1/chat/completions."""
    content = [
        {
            **_chat_token(tokenizer, entry.token_id, entry.logprob),
            "top_logprobs": [_chat_token(tokenizer, *pair) for pair in entry.top],
        }
        for entry in entries
    ]
    return {"content": content, "refusal": None}


def _chat_token(tokenizer: Tokenizer, token_id: int, logprob: float | None) -> dict[str, Any]:
    spelled = tokenizer.token_bytes(token_id)
    return {
        "token": spelled.decode(errors="replace"),
        "logprob": logprob,
        "bytes": list(spelled),
    }
