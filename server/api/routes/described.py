"""Every route of the OpenAPI document, with what its answers are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from starlette.responses import PlainTextResponse

from server.api.routes.generate import GenerationEndpoints, GenerationRoute
from server.api.routes.preparation import Preparation
from server.api.routes.specs import SCHEMAS, Endpoint, StatusRoute, refusals
from server.api.routes.status import StatusRoutes
from server.api.schema.answers import (
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    CompletionChunk,
    ErrorAnswer,
    LiveRequestList,
    MemoryTree,
    ServedModel,
    ServedModels,
    Status,
    Version,
)
from server.api.schema.requests import ChatRequest, CompletionRequest
from server.api.state import ApiState
from server.errors import ErrorCode

_GENERATES = refusals(
    *(code for code in ErrorCode if code not in (ErrorCode.NOT_FOUND, ErrorCode.METHOD_NOT_ALLOWED))
)
_AWAY = refusals(ErrorCode.ENGINE_UNAVAILABLE)
_NOT_READY = refusals(ErrorCode.ENGINE_UNAVAILABLE, ErrorCode.SHUTTING_DOWN)
_MODEL_PARAMETER = {
    "name": "model",
    "in": "path",
    "required": True,
    "description": "A model's name, which may hold slashes.",
    "schema": {"type": "string"},
}
_MEMORY_PARAMETERS = [
    {
        "name": "format",
        "in": "query",
        "description": "text is a table. With request_id the answer is JSON.",
        "schema": {"enum": ["json", "text"]},
    },
    {
        "name": "request_id",
        "in": "query",
        "description": "What the requests of this id or X-Request-Id hold, while they run.",
        "schema": {"type": "string"},
    },
]


def generation_routes(state: ApiState, preparation: Preparation) -> Iterator[GenerationRoute]:
    endpoints = GenerationEndpoints(state)
    yield GenerationRoute(
        CompletionRequest,
        endpoints.create_completion,
        state,
        preparation,
        operation_id="createCompletion",
        tags=["Generation"],
        response_model=Completion,
        responses={200: _stream_of(CompletionChunk.__name__), **_GENERATES},
    )
    yield GenerationRoute(
        ChatRequest,
        endpoints.create_chat_completion,
        state,
        preparation,
        operation_id="createChatCompletion",
        tags=["Generation"],
        response_model=ChatCompletion,
        responses={200: _stream_of(ChatCompletionChunk.__name__), **_GENERATES},
    )


def status_routes(status: StatusRoutes) -> Iterator[StatusRoute]:
    def route(
        path: str, endpoint: Endpoint, operation_id: str, tag: str = "Server", **answers: Any
    ) -> StatusRoute:
        return StatusRoute(path, endpoint, operation_id=operation_id, tags=[tag], **answers)

    yield route("/v1/models", status.models, "listModels", "Models", response_model=ServedModels)
    yield route(
        "/v1/models/{model:path}",
        status.model,
        "retrieveModel",
        "Models",
        response_model=ServedModel,
        responses=refusals(ErrorCode.MODEL_NOT_FOUND),
        openapi_extra={"parameters": [_MODEL_PARAMETER]},
    )
    yield route("/health", status.health, "health", response_model=Status, responses=_AWAY)
    yield route("/ready", status.ready, "ready", response_model=Status, responses=_NOT_READY)
    yield route("/version", status.version, "version", response_model=Version)
    yield route("/metrics", status.metrics, "metrics", response_class=PlainTextResponse)
    yield route(
        "/memory",
        status.memory,
        "memory",
        response_model=MemoryTree | LiveRequestList,
        responses={
            200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
            **refusals(ErrorCode.INVALID_VALUE, ErrorCode.NOT_FOUND, ErrorCode.ENGINE_UNAVAILABLE),
        },
        openapi_extra={"parameters": _MEMORY_PARAMETERS},
    )


def _stream_of(chunk: str) -> dict[str, Any]:
    json = {"type": "string", "contentMediaType": "application/json"}
    answers = [chunk, ErrorAnswer.__name__]
    data = [{**json, "contentSchema": {"$ref": SCHEMAS + name}} for name in answers]
    event = {
        "type": "object",
        "description": f"With stream: {chunk} after {chunk}, then [DONE], and comments where there "
        "is nothing to say. A stream that fails ends in an event of the type error instead.",
        "required": ["data"],
        "properties": {
            "data": {"anyOf": [*data, {"const": "[DONE]"}]},
            "event": {"enum": ["message", "error"]},
        },
    }
    return {"content": {"text/event-stream": {"itemSchema": event}}}
