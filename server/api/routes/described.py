"""Every route of the OpenAPI document, with what its answers are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from starlette.responses import PlainTextResponse

from server.api.routes.generate import GenerationEndpoints, GenerationRoute
from server.api.routes.preparation import Preparation
from server.api.routes.specs import SCHEMAS, StatusRoute, refusals
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
    yield StatusRoute(
        "/v1/models",
        status.models,
        operation_id="listModels",
        tags=["Models"],
        response_model=ServedModels,
    )
    yield StatusRoute(
        "/v1/models/{model:path}",
        status.model,
        operation_id="retrieveModel",
        tags=["Models"],
        response_model=ServedModel,
        responses=refusals(ErrorCode.MODEL_NOT_FOUND),
        openapi_extra={"parameters": [_MODEL_PARAMETER]},
    )
    yield StatusRoute(
        "/health",
        status.health,
        operation_id="health",
        tags=["Server"],
        response_model=Status,
        responses=_AWAY,
    )
    yield StatusRoute(
        "/ready",
        status.ready,
        operation_id="ready",
        tags=["Server"],
        response_model=Status,
        responses=refusals(ErrorCode.ENGINE_UNAVAILABLE, ErrorCode.SHUTTING_DOWN),
    )
    yield StatusRoute(
        "/version",
        status.version,
        operation_id="version",
        tags=["Server"],
        response_model=Version,
    )
    yield StatusRoute(
        "/metrics",
        status.metrics,
        operation_id="metrics",
        tags=["Server"],
        response_class=PlainTextResponse,
    )
    yield StatusRoute(
        "/memory",
        status.memory,
        operation_id="memory",
        tags=["Server"],
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
