"""The application: every route and every layer, composed here and nowhere else."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from server.api.endpoints import GenerationEndpoint
from server.api.errors import error_body, shown
from server.api.middleware import BodyLimits, RequestBoundary, trace_of
from server.api.page.route import PageRoutes
from server.api.preparation import Preparation
from server.api.schema.requests import ChatRequest, CompletionRequest, Route
from server.api.state import ApiState
from server.api.status import StatusRoutes
from server.errors import ErrorCode, QuireError


def create_app(state: ApiState) -> FastAPI:
    """The HTTP application over ``state``. Nothing of it is shared between two of them.

    No OpenAPI document is served: FastAPI would make one of its own, and it would not be true of
    the field table, which is the one description of a request.
    """
    status, page, preparation = StatusRoutes(state), PageRoutes(), Preparation(state)
    routes = {
        "/v1/models": status.models,
        "/health": status.health,
        "/ready": status.ready,
        "/version": status.version,
        "/metrics": status.metrics,
        "/memory": status.memory,
    }
    generating = frozenset(route.value for route in Route)
    templates = {path: path for path in (*routes, *generating)} | page.templates
    app = FastAPI(
        title="Quire",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        lifespan=_lifespan(state, preparation),
        exception_handlers={HTTPException: _refuse},
        middleware=[
            Middleware(
                RequestBoundary,
                metrics=state.metrics,
                templates=templates,
                generating=generating,
            ),
            Middleware(BodyLimits, limits=state.limits),
        ],
    )
    for path, handler in routes.items():
        app.add_route(path, handler, methods=["GET"])
    for path in page.templates:
        app.add_route(path, page.file, methods=["GET"])
    app.add_route("/v1/models/{model:path}", status.model, methods=["GET"])
    for kind in (CompletionRequest, ChatRequest):
        endpoint = GenerationEndpoint(state, kind, preparation)
        app.router.add_route(kind.route.value, endpoint, methods=["POST"])  # type: ignore[arg-type]
    return app


def _lifespan(
    state: ApiState, preparation: Preparation
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    """Starts the template's worker ahead of the first chat, and ends what holds threads."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if state.chat_template is not None:
            await state.chat_template.start()
        try:
            yield
        finally:
            if state.chat_template is not None:
                await state.chat_template.close()
            state.tokenizer.close()
            preparation.close()

    return lifespan


async def _refuse(request: Request, raised: Exception) -> Response:
    """Routing's own refusals, 404 and 405, in the one shape."""
    if not isinstance(raised, HTTPException):
        raise raised
    path, method = shown(request.url.path), shown(request.method)
    if raised.status_code == 405:
        allowed = (raised.headers or {}).get("Allow", "")
        message = f"The method {method} is not allowed on {path}. Allowed: {allowed}."
        error = QuireError(ErrorCode.METHOD_NOT_ALLOWED, message)
    elif raised.status_code == 404:
        error = QuireError(ErrorCode.NOT_FOUND, f"There is nothing at {path}.")
    else:
        error = QuireError(ErrorCode.INVALID_REQUEST, str(raised.detail))
    trace_of(request.scope).error = error
    return JSONResponse(
        error_body(error), status_code=error.code.value.status, headers=raised.headers
    )
