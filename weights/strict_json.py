"""JSON as strangers may write it, read strictly: UTF-8, no duplicate keys, no NaN, an object.

Python's own parser is more lenient than the standard (RFC 8259), so each leniency is taken back.
Files of a checkpoint and bodies of requests are read by it; how much of either may come is their
readers' matter. ``shown`` is how messages repeat what strangers wrote.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from weights.errors import CheckpointError

MAX_JSON_VALUES = 1_000_000  # of a checkpoint's document, but for headers and the index
_ENTRIES = 3  # of an object that is shown


class JsonFault(ValueError):
    """Not a JSON object. The message goes on from what the text is: "is not UTF-8 at byte 3"."""


def parse_object(data: bytes, where: str, max_values: int = MAX_JSON_VALUES) -> dict[str, Any]:
    """The JSON object of a checkpoint's file, of at most about ``max_values`` values, names
    included, and finite numbers only.

    Raises CheckpointError that begins with ``where``.
    """
    _check_count(data, where, max_values)
    try:
        return read_object(data, number=_finite)
    except JsonFault as fault:
        raise CheckpointError(f"{where} {fault}") from None


def read_object(data: bytes, number: Callable[[str], float] | None = None) -> dict[str, Any]:
    """The object that ``data`` is. ``number`` makes one of a text with a point or an exponent.

    Raises JsonFault.
    """
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_refuse_constant,
            parse_float=number,
        )
    except UnicodeDecodeError as error:
        raise JsonFault(f"is not UTF-8 at byte {error.start}") from None
    except RecursionError:
        raise JsonFault("is nested too deeply") from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise JsonFault(f"is not valid JSON: {error.msg} at {place}") from None
    except JsonFault:
        raise
    except ValueError:  # an integer of thousands of digits
        raise JsonFault("holds a number with too many digits") from None
    if not isinstance(value, dict):
        raise JsonFault(f"must be a JSON object, not {shown(value)}")
    return value


def _check_count(data: bytes, where: str, max_values: int) -> None:
    """Before anything is built: a document of nothing but small values takes fifty times its bytes.

    Every value but the first follows one of these; those inside strings are counted too.
    """
    values = sum(data.count(mark) for mark in (b",", b":", b"[", b"{"))
    if values > max_values:
        raise CheckpointError(f"{where} has about {values} values; at most {max_values} are read")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise JsonFault(f"has a duplicate key: {shown(key)}")
            seen.add(key)
    return found


def _refuse_constant(word: str) -> NoReturn:
    raise JsonFault(f"is not valid JSON: {word} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise JsonFault(f"is not valid JSON: {text[:40]} is not finite")
    return value


def shown(value: object, most: int = 80) -> str:
    """A value as a message may repeat it: as JSON has it, one line of ASCII, cut short."""
    if isinstance(value, str):
        text = json.dumps(value[: most + 1])
    elif isinstance(value, list):
        text = f"a list of {len(value)}"
    elif isinstance(value, dict):
        text = _shown_object(value, most)
    elif isinstance(value, bool) or value is None:
        text = json.dumps(value)
    elif isinstance(value, int) and value.bit_length() > 128:
        text = f"an integer of {value.bit_length()} bits"
    else:
        text = repr(value)
    return text if len(text) <= most else text[: most - 1] + "…"


def _shown_object(value: Mapping[Any, object], most: int) -> str:
    """A small object as it is, but for what lies deeper: {"type": "json_schema", "schema": {…}}."""
    if len(value) > _ENTRIES:
        return f"an object of {len(value)}"
    entries = (f"{shown(key, most)}: {_shown_entry(value[key], most)}" for key in value)
    return "{" + ", ".join(entries) + "}"


def _shown_entry(value: object, most: int) -> str:
    if isinstance(value, dict):
        return "{…}" if value else "{}"
    if isinstance(value, list):
        return "[…]" if value else "[]"
    return shown(value, most)
