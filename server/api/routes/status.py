"""The routes that only report: models, health, readiness, version, metrics, memory."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from server.api.open_request import OpenRequest
from server.api.schema.requests import check_model
from server.api.state import ApiState, check_takes_requests
from server.api.usage import live_memory, timings
from server.errors import ErrorCode, QuireError
from weights.strict_json import shown

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
TEXT_TYPE = "text/plain; charset=utf-8"
# What is true of one moment is kept by no browser and no proxy.
NOW = {"cache-control": "no-store"}
_MEMORY_PARAMETERS = ("format", "request_id")


class StatusRoutes:
    """Each method is a route. None of them waits for the engine, but for what one request holds."""

    def __init__(self, state: ApiState) -> None:
        self._state = state

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        check_model(request.path_params["model"], self._state.model)
        return JSONResponse(self._model())

    def _model(self) -> dict[str, Any]:
        card = self._state.model
        return {
            "id": card.name,
            "object": "model",
            "created": card.created,
            "owned_by": "quire",
            "max_model_len": card.max_model_len,
            "vocab_size": card.vocab_size,
            "chat": self._chats(),
        }

    def _chats(self) -> bool:
        """Whether chats are served: there is a template, and it can be used."""
        template = self._state.chat_template
        return template is not None and not template.is_broken

    async def health(self, request: Request) -> Response:
        """200 while the engine lives and makes progress."""
        if not self._state.health.alive:
            raise QuireError(ErrorCode.ENGINE_UNAVAILABLE, "The engine is not making progress.")
        return JSONResponse({"status": "ok"}, headers=NOW)

    async def ready(self, request: Request) -> Response:
        """200 while new requests are taken."""
        check_takes_requests(self._state.health)
        if not self._state.health.ready:
            raise QuireError(ErrorCode.ENGINE_UNAVAILABLE, "The engine is not ready.")
        return JSONResponse({"status": "ready"}, headers=NOW)

    async def version(self, request: Request) -> Response:
        return JSONResponse(dict(self._state.version))

    async def metrics(self, request: Request) -> Response:
        return Response(self._state.render_metrics(), media_type=METRICS_TYPE, headers=NOW)

    async def memory(self, request: Request) -> Response:
        query = _query(request, _MEMORY_PARAMETERS)
        name, form = query.get("request_id"), query.get("format", "json")
        if name is not None:
            found = await self._live_requests(name, form)
            return JSONResponse({"requests": found}, headers=NOW)
        if form == "text":
            return Response(self._state.memory_text(), media_type=TEXT_TYPE, headers=NOW)
        if form == "json":
            return JSONResponse(dict(self._state.memory()), headers=NOW)
        message = f"format must be json or text, not {shown(form)}."
        raise QuireError(ErrorCode.INVALID_VALUE, message, param="format")

    async def _live_requests(self, name: str, form: str) -> list[dict[str, Any]]:
        """What the live requests of that name hold."""
        if form != "json":
            message = f"With request_id the answer is JSON. format is {shown(form)}: leave it out."
            raise QuireError(ErrorCode.INVALID_VALUE, message, param="format")
        found = [await self._live_request(live) for live in self._state.live.find(name)]
        if not found:
            message = (
                f"No request {shown(name)} is in progress: it has ended or was never received. "
                "With usage_details a request's answer says what it held."
            )
            raise QuireError(ErrorCode.NOT_FOUND, message, param="request_id")
        return found

    async def _live_request(self, live: OpenRequest) -> dict[str, Any]:
        held = await self._state.engine.memory_of(live.engine_ids)
        return {
            "request_id": live.request_id,
            "client_request_id": live.label,
            "route": live.route,
            "stream": live.stream,
            "choices": live.num_choices,
            "prompt_tokens": live.prompt_tokens,
            "memory": live_memory(held),
            "timings": timings(live),
        }


def _query(request: Request, known: tuple[str, ...]) -> dict[str, str]:
    """The parameters of the address, each at most once and none that would be ignored."""
    found: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name not in known:
            message = f"The parameter {shown(name)} is unknown. Known: {', '.join(known)}."
            raise QuireError(ErrorCode.INVALID_VALUE, message)
        if name in found:
            raise QuireError(
                ErrorCode.INVALID_VALUE, f"{name} is given more than once.", param=name
            )
        found[name] = value
    return found
