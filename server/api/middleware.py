"""The layers around every route, as plain ASGI: the error boundary, and bounds on the body."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.errors import error_event, error_headers, error_json
from server.api.open_request import OpenRequest, Surroundings
from server.api.state import HttpLimits
from server.api.trace import ClientDisconnected, RequestTrace, safe_label
from server.errors import ErrorCode, QuireError

EVENT_STREAM = b"text/event-stream; charset=utf-8"  # the content type of a stream
METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
log = logging.getLogger("quire.api")


def trace_of(scope: Scope) -> RequestTrace:
    """The request's trace, put there by RequestBoundary."""
    trace: RequestTrace = scope["state"]["trace"]
    return trace


def open_request(scope: Scope) -> OpenRequest:
    """The trace of a request to a generating route, which is all of it."""
    one = trace_of(scope)
    if not isinstance(one, OpenRequest):
        raise TypeError(f"{one.route} is not in RequestBoundary's generating routes")
    return one


def header(scope: Scope, name: bytes) -> bytes | None:
    """The last value of a header; ``name`` in lower case."""
    found: bytes | None = None
    for key, value in scope["headers"]:
        if key == name:
            found = value
    return found


class RequestBoundary:
    """The outermost layer: every request gets an id, one answer, and one record.

    ``generating`` are the routes whose requests are counted by outcome: a POST to one of them is an
    OpenRequest. ``templates`` maps a raw path to its route's template.
    """

    def __init__(
        self,
        app: ASGIApp,
        surroundings: Surroundings,
        templates: Mapping[str, str],
        generating: frozenset[str],
    ) -> None:
        self._app = app
        self._surroundings = surroundings
        self._templates = templates
        self._generating = generating

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        trace = self._trace(scope)
        scope.setdefault("state", {})["trace"] = trace
        answer = _Answer(send, trace)
        try:
            await self._app(scope, receive, answer)
        except ClientDisconnected:
            trace.disconnected = True
        except QuireError as error:
            await answer.fail(error)
        except asyncio.CancelledError:
            trace.error = QuireError(ErrorCode.SHUTTING_DOWN, "The server is stopping.")
            raise
        except Exception:
            log.exception("request %s failed", trace.request_id)
            message = f"The server failed. Report request {trace.request_id}."
            await answer.fail(QuireError(ErrorCode.INTERNAL, message))
        finally:
            trace.report(self._surroundings.metrics)

    def _trace(self, scope: Scope) -> RequestTrace:
        method = scope["method"] if scope["method"] in METHODS else "OTHER"
        route = self._templates.get(scope["path"], "unmatched")
        if route == "unmatched" and scope["path"].startswith("/v1/models/"):
            route = "/v1/models/{model}"
        label = safe_label(header(scope, b"x-request-id"))
        if route in self._generating and method == "POST":
            return OpenRequest(method, route, True, label, surroundings=self._surroundings)
        return RequestTrace(method, route, False, label)


class _Answer:
    """The send side: adds the request id to the headers, and knows how far the answer got."""

    def __init__(self, send: Send, trace: RequestTrace) -> None:
        self._send = send
        self._trace = trace
        self._streams = False  # events can still be written

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._trace.status = message["status"]
            self._streams = (b"content-type", EVENT_STREAM) in message.get("headers", ())
            id = self._trace.label or self._trace.request_id
            message["headers"] = [*message.get("headers", ()), (b"x-request-id", id.encode())]
        elif not message.get("more_body", False):
            self._streams = False
        await self._send(message)

    async def fail(self, error: QuireError) -> None:
        """The error as the answer, or as a stream's last event where it is late for a status."""
        self._trace.error = error
        if self._streams:
            await self({"type": "http.response.body", "body": error_event(error)})
        if self._trace.status:
            return
        body = error_json(error)
        headers = [*error_headers(error), (b"content-length", str(len(body)).encode())]
        if error.code is ErrorCode.REQUEST_TIMEOUT:
            headers.append((b"connection", b"close"))
        status = error.code.value.status
        await self({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})


class BodyLimits:
    """Bounds the size of a body. The time that it takes to come is bounded by the connection."""

    def __init__(self, app: ASGIApp, limits: HttpLimits) -> None:
        self._app = app
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        self._check_headers(scope)
        announced = header(scope, b"content-length")
        if announced is not None and announced.isdigit():
            self._check_size(int(announced[:20]))
        await self._app(scope, self._bounded(receive), send)

    def _bounded(self, receive: Receive) -> Receive:
        size = 0

        async def bounded() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            self._check_size(size)
            return message

        return bounded

    def _check_headers(self, scope: Scope) -> None:
        """The parser bounds headers that are not complete; this bounds those that are."""
        limit = self._limits.max_header_bytes
        size = len(scope["raw_path"]) + len(scope["query_string"])
        size += sum(len(key) + len(value) for key, value in scope["headers"])
        if size > limit:
            raise QuireError(
                ErrorCode.HEADERS_TOO_LARGE,
                f"The request's headers have {size} bytes; {limit} are allowed.",
            )

    def _check_size(self, size: int) -> None:
        if size > self._limits.max_body_bytes:
            raise QuireError(
                ErrorCode.BODY_TOO_LARGE,
                f"The request body is larger than {self._limits.max_body_bytes} bytes. "
                "Send a smaller one.",
            )
