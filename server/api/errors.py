"""The one error shape: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from server.errors import ErrorCode, QuireError

MESSAGE_CHARACTERS = 1000
SHOWN_CHARACTERS = 60


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
        text = f"an object of {len(value)}"
    elif isinstance(value, bool) or value is None:
        text = json.dumps(value)
    elif isinstance(value, int) and value.bit_length() > 128:
        text = f"an integer of {value.bit_length()} bits"
    else:
        text = repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1] + "…"


def joined(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def wrong_type(param: str, value: object, wanted: str) -> QuireError:
    message = f"{param} must be {wanted}, not {shown(value)}."
    return QuireError(ErrorCode.INVALID_TYPE, message, param=param)


def wrong_value(param: str, value: object, wanted: str) -> QuireError:
    message = f"{param} must be {wanted}, not {shown(value)}."
    return QuireError(ErrorCode.INVALID_VALUE, message, param=param)
