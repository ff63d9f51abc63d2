"""The application: every route and every layer, composed here and nowhere else."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from server.api.errors import error_body
from server.api.middleware import BodyLimits, RequestBoundary, trace_of
from server.api.open_request import Surroundings
from server.api.routes.described import generation_routes, status_routes
from server.api.routes.openapi import Document
from server.api.routes.preparation import Preparation
from server.api.routes.specs import StatusRoute
from server.api.routes.status import StatusRoutes
from server.api.schema.requests import Route
from server.api.state import ApiState
from server.api.ui.route import PageRoutes
from server.errors import ErrorCode, QuireError
from weights.strict_json import shown


def create_app(state: ApiState) -> FastAPI:
    """The HTTP application over ``state``. Nothing of it is shared between two of them."""
    preparation, page = Preparation(state), PageRoutes()
    document = Document(state.model, state.version.get("version", ""))
    described = [
        *generation_routes(state, preparation),
        *status_routes(StatusRoutes(state)),
        StatusRoute("/openapi.json", document.answer, include_in_schema=False),
    ]
    generating = frozenset(route.value for route in Route)
    templates = {route.path: route.path for route in described} | page.templates
    app = FastAPI(
        title="Quire",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,  # FastAPI's own would know neither the model's bounds nor our refusals
        redirect_slashes=False,
        lifespan=_lifespan(state, preparation),
        exception_handlers={HTTPException: _refuse},
        middleware=[
            Middleware(
                RequestBoundary,
                surroundings=Surroundings(state.engine, state.tokenizer, state.metrics, state.live),
                templates=templates,
                generating=generating,
            ),
            Middleware(BodyLimits, limits=state.limits),
        ],
    )
    app.router.routes.extend(described)
    for path in page.templates:
        app.add_route(path, page.file, methods=["GET"])
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
