"""The OpenAPI document: FastAPI's, of the routes and models, made true of the server that runs.

The bounds of a field that depend on the model stand in the models' schemas as ``x-maximum`` and the
like, with the name of a ModelCard attribute; here they become figures.
"""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import Response

from server.api.routes.specs import CODES, SCHEMAS
from server.api.schema.answers import ChatCompletionChunk, CompletionChunk, ErrorAnswer
from server.api.state import ModelCard
from server.errors import ErrorCode

# Whole numbers up to a bound as a regular expression, for keys: JSON Schema bounds values only.


def decimals_up_to(most: int) -> str:
    """Matches the decimal of every number from 0 to ``most``, with as many digits as it needs.
    To be used between anchors."""
    digits = str(most)
    length = len(digits)
    forms = ["[0-9]"] if length > 1 else [f"[0-{most}]"]
    forms += [f"[1-9][0-9]{{{size - 1}}}" for size in range(2, length)]
    if length > 1:
        for at, digit in enumerate(digits):  # a shorter prefix of the bound, then less, then any
            low = 1 if at == 0 else 0
            if int(digit) > low:
                forms.append(f"{digits[:at]}[{low}-{int(digit) - 1}][0-9]{{{length - at - 1}}}")
        forms.append(digits)
    return f"({'|'.join(forms)})"


DESCRIPTION = (
    "OpenAI-style completions and chats of one model, and the server's own reports. "
    "A field may be null, which means that it is absent. A value that asks for something is served "
    "or refused by name."
)
_BESIDE_ROUTES: Sequence[type[BaseModel]] = (ErrorAnswer, CompletionChunk, ChatCompletionChunk)
_MARK = "x-"
_BOUNDS = ("minimum", "maximum", "maxItems", "const")
_DECIMALS = "decimals"  # of an object's keys, for which JSON Schema has no bound


class Document:
    """The document of one application, made when it is first asked for, in a thread."""

    def __init__(self, model: ModelCard, version: str) -> None:
        self._model, self._version = model, version
        self._content: bytes | None = None
        self._making = asyncio.Lock()

    async def answer(self, request: Request) -> Response:
        """This document."""
        async with self._making:
            if self._content is None:
                self._content = await asyncio.to_thread(self._made, request.app)
        return Response(self._content, media_type="application/json")

    def _made(self, app: FastAPI) -> bytes:
        return json.dumps(describe(app, self._model, self._version)).encode()


def describe(app: FastAPI, model: ModelCard, version: str) -> dict[str, Any]:
    routes = [_as_described(route) for route in app.routes if isinstance(route, APIRoute)]
    document = get_openapi(title=app.title, version=version, description=DESCRIPTION, routes=routes)
    schemas = document["components"]["schemas"]
    _, beside = models_json_schema(
        [(one, "serialization") for one in _BESIDE_ROUTES], ref_template=SCHEMAS + "{model}"
    )
    schemas.update(beside["$defs"])
    for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own refusals
        schemas.pop(name, None)
    for path in document["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
            for answer in operation["responses"].values():
                _complete(answer)
    resolved: dict[str, Any] = _resolved(document, model)
    return resolved


def _as_described(route: APIRoute) -> APIRoute:
    """Without HEAD, which HTTP gives every GET."""
    described = copy.copy(route)
    described.methods = set(route.methods or ()) - {"HEAD"}
    return described


def _complete(answer: dict[str, Any]) -> None:
    """What every answer has, and a refusal's shape with an example of each of its codes."""
    id = {"description": "The request's id.", "schema": {"type": "string"}}
    answer.setdefault("headers", {})["X-Request-Id"] = id
    codes = [ErrorCode[name].value for name in answer.pop(CODES, ())]
    if not codes:
        return
    examples = {}
    for kind in codes:
        error = {"message": "What is wrong, and what to do.", "type": kind.type, "param": None}
        examples[kind.code] = {"value": {"error": {**error, "code": kind.code}}}
        if kind.status in (429, 503):
            seconds = {"description": "Seconds, where known.", "schema": {"type": "integer"}}
            answer["headers"]["Retry-After"] = seconds
    answer["description"] = "Refused: " + ", ".join(examples) + "."
    schema = {"$ref": SCHEMAS + ErrorAnswer.__name__}
    answer["content"] = {"application/json": {"schema": schema, "examples": examples}}


def _resolved(value: Any, model: ModelCard) -> Any:
    if isinstance(value, list):
        return [_resolved(item, model) for item in value]
    if not isinstance(value, dict):
        return value
    found = {}
    for key, item in value.items():
        name = key.removeprefix(_MARK)
        if name == key or name not in (*_BOUNDS, _DECIMALS):
            found[key] = _resolved(item, model)
            continue
        bound = getattr(model, item) if isinstance(item, str) else item
        if name == _DECIMALS:
            found["pattern"] = f"^0*{decimals_up_to(bound)}$"
        else:
            found[name] = bound
    return found
