"""POST /v1/completions and /v1/chat/completions: one way for both, from body to last byte.

    body -> preparation -> endpoint: how to answer -> engine -> OutputProcessor -> JSON or SSE

The status is decided by the engine's acceptance; only then do headers go out. From the moment that
the body is there, the client's leaving cancels whatever is under way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from contextlib import aclosing
from typing import Annotated, Any, TypeVar

from fastapi import Depends
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from server.api.body import Body
from server.api.middleware import EVENT_STREAM, header, open_request
from server.api.open_request import OpenRequest
from server.api.routes.preparation import Preparation
from server.api.routes.responses import (
    DONE,
    ChatFormat,
    CompletionFormat,
    ResponseBuilder,
    ResponseFormat,
    to_json,
)
from server.api.routes.specs import DescribedRoute
from server.api.routes.stream import StreamWriter
from server.api.schema.requests import ChatRequest, CompletionRequest, GenerationRequest
from server.api.sizes import TOKEN_BYTES, held_bytes
from server.api.state import ApiState, check_takes_requests
from server.api.trace import ClientDisconnected
from server.engine.request import EngineRequest
from server.errors import ErrorCode, QuireError
from server.host_budget import Holding, Use
from server.output.processor import Collector, OutputOptions
from server.output.stops import StopStrings
from weights.strict_json import shown

T = TypeVar("T")


def opened(request: Request) -> OpenRequest:
    return open_request(request.scope)


Opened = Annotated[OpenRequest, Depends(opened)]


class GenerationEndpoints:
    """How each of the two routes writes its answers."""

    def __init__(self, state: ApiState) -> None:
        self._state = state

    def create_completion(self, request: CompletionRequest, one: Opened) -> ResponseBuilder:
        """Continues a text, texts, or token ids."""
        form = CompletionFormat(self._state.tokenizer, request)
        return self._answer(form, "text_completion", request, one)

    def create_chat_completion(self, request: ChatRequest, one: Opened) -> ResponseBuilder:
        """Answers a conversation, which the model's own template makes a text of."""
        form = ChatFormat(self._state.tokenizer, request)
        return self._answer(form, "chat.completion", request, one)

    def _answer(
        self, form: ResponseFormat, kind: str, request: GenerationRequest, one: OpenRequest
    ) -> ResponseBuilder:
        return ResponseBuilder(
            form,
            kind,
            one.request_id,
            self._state.model,
            usage_chunk=request.include_usage,
            usage_details=request.usage_details,
            continuous_usage=request.continuous_usage,
        )


class GenerationRoute(DescribedRoute):
    """The route of one kind of request. ``endpoint`` says how a valid one is answered."""

    def __init__(
        self,
        kind: type[GenerationRequest],
        endpoint: Callable[[Any, OpenRequest], ResponseBuilder],
        state: ApiState,
        preparation: Preparation,
        **described: Any,
    ) -> None:
        super().__init__(kind.route.value, endpoint, self._serve, methods=["POST"], **described)
        self._kind = kind
        self._answer_to = endpoint
        self._state = state
        self._preparation = preparation

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        _check_content_type(scope)
        one = open_request(scope)
        body = Body()
        with self._state.budget.hold(Use.BODIES) as holding:
            await body.read(scope, receive, holding)
            work = self._generate(body, holding, one, send)
            await unless_disconnected(receive, work, leaving=one.abort)

    async def _generate(self, body: Body, holding: Holding, one: OpenRequest, send: Send) -> None:
        request, requests = await self._prepared(body, holding, one)
        answer = self._answer_to(request, one)
        options = OutputOptions(
            stops=StopStrings(request.stop),
            echo=request.echo,
            continuation=self._kind is CompletionRequest,
        )
        with one.asking(requests, options):
            check_takes_requests(self._state.health)
            await one.submit()
            if request.stream:
                await stream_answer(one, answer, send, self._state.limits.stream_keep_alive_s)
            else:
                await whole_answer(one, answer, send)

    async def _prepared(
        self, body: Body, holding: Holding, one: OpenRequest
    ) -> tuple[GenerationRequest, list[EngineRequest]]:
        """What the engine is asked, and the rest of the request: its texts are let go."""
        parsed = await self._preparation.read(body, self._kind, holding)
        one.stream = parsed.request.stream
        check_takes_requests(self._state.health)
        requests = await self._preparation.engine_requests(parsed, one.request_id, holding)
        parsed.request.forget_text()
        ids = sum(len(request.prompt_token_ids) for request in requests)
        holding.hold(held_bytes(vars(parsed.request)) + TOKEN_BYTES * ids)
        return parsed.request, requests


async def whole_answer(one: OpenRequest, answer: ResponseBuilder, send: Send) -> None:
    collector = Collector(one.num_choices)
    async with aclosing(one.deltas()) as deltas:
        async for index, delta in deltas:
            collector.add(index, delta)
    usage = one.usage(details=answer.usage_details)
    body = to_json(answer.full(collector.results(), usage))
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def stream_answer(
    one: OpenRequest, answer: ResponseBuilder, send: Send, keep_alive_s: float
) -> None:
    """Writes the stream. What it raises after the headers becomes an event in RequestBoundary."""
    headers = [
        (b"content-type", EVENT_STREAM),
        (b"cache-control", b"no-cache"),
        (b"x-accel-buffering", b"no"),  # a proxy must not collect the stream
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})

    def chunks(choices: Iterable[dict[str, Any]]) -> bytes:
        usage = one.usage() if answer.continuous_usage else None
        return b"".join(answer.chunk(choice, usage) for choice in choices)

    def usage() -> bytes:
        return answer.last_chunk(one.usage(details=answer.usage_details))

    async with StreamWriter(send, keep_alive_s) as stream:
        opening = (answer.form.first_chunks(index) for index in range(one.num_choices))
        await stream.write(b"".join(chunks(choices) for choices in opening))
        try:
            async with aclosing(one.deltas()) as deltas:
                async for index, delta in deltas:
                    await stream.write(chunks(answer.form.chunks(index, delta)))
        except QuireError:
            if answer.usage_details:
                await stream.write(usage())  # a request that failed has held memory too
            raise
        await stream.end((usage() if answer.usage_chunk else b"") + DONE)


async def unless_disconnected(
    receive: Receive, work: Coroutine[Any, Any, T], leaving: Callable[[], None]
) -> T:
    """Runs ``work`` to its end, or cancels it when the client goes away; ``leaving`` is called
    just before.

    Raises:
        ClientDisconnected: after the work was cancelled and has cleaned up.
    """
    task = asyncio.create_task(work)
    watcher = asyncio.create_task(_disconnection(receive))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnected
    finally:
        if not task.done():
            leaving()
        task.cancel()
        watcher.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


async def _disconnection(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _check_content_type(scope: Scope) -> None:
    kind = (header(scope, b"content-type") or b"application/json").decode("latin-1")
    name, _, parameters = kind.partition(";")
    charset = parameters.replace(" ", "").replace('"', "").lower()
    if name.strip().lower() != "application/json" or charset not in ("", "charset=utf-8"):
        raise QuireError(
            ErrorCode.UNSUPPORTED_MEDIA_TYPE,
            f"The content type {shown(kind)} is not served. Send application/json in UTF-8.",
        )
    encoding = (header(scope, b"content-encoding") or b"identity").decode("latin-1")
    if encoding.strip().lower() != "identity":
        raise QuireError(
            ErrorCode.UNSUPPORTED_MEDIA_TYPE,
            f"The content encoding {shown(encoding)} is not served. Send the body as it is.",
        )
