"""The one error shape: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from server.errors import QuireError

MESSAGE_CHARACTERS = 1000
SHOWN_CHARACTERS = 60
SHOWN_ENTRIES = 3  # of an object


def error_body(error: QuireError) -> dict[str, Any]:
    """The JSON object that a client is given."""
    kind = error.code.value
    return {
        "error": {
            "message": error.message[:MESSAGE_CHARACTERS],
            "type": kind.type,
            "param": error.param,
            "code": kind.code,
        }
    }


def error_json(error: QuireError) -> bytes:
    return json.dumps(error_body(error)).encode()  # ASCII: a surrogate in it does no harm


def error_headers(error: QuireError) -> list[tuple[bytes, bytes]]:
    """Headers that belong to the error itself."""
    headers = [(b"content-type", b"application/json")]
    if error.retry_after is not None:
        headers.append((b"retry-after", str(error.retry_after).encode()))
    return headers


def error_event(error: QuireError) -> bytes:
    """The error as a server-sent event, for a stream that has begun."""
    return b"event: error\ndata: " + error_json(error) + b"\n\n"


def shown(value: object) -> str:
    """What a client gave, as a message may repeat it: short, and harmless in a log."""
    if isinstance(value, str):
        text = json.dumps(value[: SHOWN_CHARACTERS + 1])
    elif isinstance(value, list):
        text = f"a list of {len(value)}"
    elif isinstance(value, dict):
        text = _shown_object(value)
    elif isinstance(value, bool) or value is None:
        text = json.dumps(value)
    elif isinstance(value, int) and value.bit_length() > 128:
        text = f"an integer of {value.bit_length()} bits"
    else:
        text = repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1] + "…"


def _shown_object(value: Mapping[Any, object]) -> str:
    """A small object as it is, but for what lies deeper: {"type": "json_schema", "schema": {…}}."""
    if len(value) > SHOWN_ENTRIES:
        return f"an object of {len(value)}"
    return "{" + ", ".join(f"{shown(key)}: {_shown_entry(value[key])}" for key in value) + "}"


def _shown_entry(value: object) -> str:
    if isinstance(value, dict):
        return "{…}" if value else "{}"
    if isinstance(value, list):
        return "[…]" if value else "[]"
    return shown(value)


def joined(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
