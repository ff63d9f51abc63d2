"""The answer to what is no request for the application: one piece, and the last."""

from __future__ import annotations

from server.api.errors import error_json
from server.errors import QuireError


def refusal(error: QuireError) -> bytes:
    body = error_json(error)
    kind = error.code.value
    retry = f"retry-after: {error.retry_after}\r\n" if error.retry_after else ""
    head = (
        f"HTTP/1.1 {kind.status} {kind.code}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n{retry}connection: close\r\n\r\n"
    )
    return head.encode() + body
