"""JSON as strangers may write it: bounded, UTF-8, no duplicate keys, finite numbers, an object."""

from __future__ import annotations

import json
import math
from typing import Any

from weights.checkpoint.limits import MAX_JSON_VALUES
from weights.errors import CheckpointError


class _DuplicateKey(ValueError):
    pass


def parse_object(data: bytes, where: str, max_values: int = MAX_JSON_VALUES) -> dict[str, Any]:
    """The JSON object in ``data``, of at most about ``max_values`` values, names included.

    Raises CheckpointError that begins with ``where``.
    """
    _check_count(data, where, max_values)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{where} is not UTF-8 (byte {error.start})") from None
    try:
        value = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_constant=_refuse_constant,
            parse_float=_finite,
        )
    except _DuplicateKey as error:
        raise CheckpointError(f"{where} has a duplicate key: {show(str(error))}") from None
    except RecursionError:
        raise CheckpointError(f"{where} is nested too deeply") from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno} column {error.colno}"
        raise CheckpointError(f"{where} is not JSON: {error.msg}, {place}") from None
    except ValueError as error:  # a number that is not finite, or of thousands of digits
        raise CheckpointError(f"{where} is not JSON: {str(error)[:120]}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{where} must be a JSON object, not {type(value).__name__}")
    return value


def _check_count(data: bytes, where: str, max_values: int) -> None:
    """Before anything is built: a document of nothing but small values takes fifty times its bytes.

    Every value but the first follows one of these; those inside strings are counted too.
    """
    values = sum(data.count(mark) for mark in (b",", b":", b"[", b"{"))
    if values > max_values:
        raise CheckpointError(f"{where} has about {values} values; at most {max_values} are read")


def show(name: str) -> str:
    """A name from a file as it may stand in a message: one line, ASCII, cut short."""
    text = ascii(name)
    return text if len(text) <= 120 else f"{text[:117]}..."


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _DuplicateKey(key)
            seen.add(key)
    return result


def _refuse_constant(word: str) -> float:
    raise ValueError(f"{word} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is not finite")
    return value
