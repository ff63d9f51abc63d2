"""A request's head as ASGI's scope (version 3.0)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from server.api.http1.head import Head


def request_scope(
    head: Head, transport: asyncio.BaseTransport, app_state: Mapping[str, Any]
) -> dict[str, Any]:
    server = transport.get_extra_info("sockname")
    client = transport.get_extra_info("peername")
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": head.version,
        "server": tuple(server[:2]) if isinstance(server, tuple) else None,
        "client": tuple(client[:2]) if isinstance(client, tuple) else None,
        "scheme": "http",
        "root_path": "",
        "method": head.method,
        "path": head.path,
        "raw_path": head.raw_path,
        "query_string": head.query,
        "headers": head.headers,
        "state": dict(app_state),
    }
