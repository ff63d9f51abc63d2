"""Routes as FastAPI knows them: the OpenAPI document is made of what is said of each here.

FastAPI reads a route's signature and its models; it does not read the request. Its own reading of a
body knows no bound on depth, size or values, holds the loop while it parses, and takes NaN and a
key twice; so each of these routes brings the ASGI application that answers it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route, request_response
from starlette.types import ASGIApp, Scope

from server.errors import ErrorCode

CODES = "x-codes"
SCHEMAS = "#/components/schemas/"

Endpoint = Callable[[Request], Awaitable[Response]]


class DescribedRoute(APIRoute):
    """``endpoint`` is what the document describes, by its signature and docstring; ``app``
    answers."""

    def __init__(self, path: str, endpoint: Callable[..., Any], app: ASGIApp, **described: Any):
        super().__init__(path, endpoint, **described)
        self.app = app

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Starlette's. FastAPI's looks first for a router that includes the route: there is none,
        and looking costs every request at every route before its own."""
        return Route.matches(self, scope)


class StatusRoute(DescribedRoute):
    """GET and HEAD of a route that only reports."""

    def __init__(self, path: str, endpoint: Endpoint, **described: Any):
        methods = ["GET", "HEAD"]
        super().__init__(path, endpoint, request_response(endpoint), methods=methods, **described)


def refusals(*codes: ErrorCode) -> dict[int | str, dict[str, Any]]:
    """The refusals of a route by status, with their codes: server.api.routes.openapi makes
    examples."""
    found: dict[int | str, dict[str, Any]] = {}
    for code in codes:
        answer = found.setdefault(code.value.status, {"description": "Refused.", CODES: []})
        answer[CODES].append(code.name)
    return found
