"""The one error shape: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from server.errors import QuireError

MESSAGE_CHARACTERS = 1000


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


def joined(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
