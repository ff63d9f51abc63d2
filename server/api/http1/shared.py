"""What the connections of one server have in common."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.types import ASGIApp

from server.api.errors import error_json
from server.api.http1.places import Places
from server.api.http1.turns import Turns
from server.api.state import HttpLimits
from server.errors import QuireError
from server.metrics.stats import RequestMetrics


@dataclass
class Shared:
    """``connections`` and ``tasks`` are what the server waits for when it stops;
    ``default_headers`` gives those of every answer."""

    app: ASGIApp
    limits: HttpLimits
    metrics: RequestMetrics
    loop: asyncio.AbstractEventLoop
    turns: Turns
    places: Places
    connections: set[Any]
    tasks: set[asyncio.Task[None]]
    default_headers: Callable[[], list[tuple[bytes, bytes]]]
    app_state: dict[str, Any] = field(default_factory=dict)


# The answer to what is not a request for the application: one piece, and the last.


def refusal(error: QuireError) -> bytes:
    body = error_json(error)
    kind = error.code.value
    retry = f"retry-after: {error.retry_after}\r\n" if error.retry_after else ""
    head = (
        f"HTTP/1.1 {kind.status} {kind.code}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n{retry}connection: close\r\n\r\n"
    )
    return head.encode() + body
