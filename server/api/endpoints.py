"""POST /v1/completions and /v1/chat/completions: one way for both, from body to last byte.

    body -> preparation -> engine -> OutputProcessor -> JSON or SSE

The status is decided by the engine's acceptance; only then do headers go out. From the moment that
the body is there, the client's leaving cancels whatever is under way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.types import Receive, Scope, Send

from server.api.answers import DONE, Answer, AnswerForm, ChatForm, CompletionForm, to_json
from server.api.body import Body
from server.api.errors import shown, still_loading
from server.api.generation import Generation
from server.api.middleware import EVENT_STREAM, header, trace_of
from server.api.preparation import Preparation
from server.api.schema.requests import ChatRequest, CompletionRequest, GenerationRequest
from server.api.sizes import TOKEN_BYTES, held_bytes
from server.api.state import ApiState
from server.api.stream import StreamWriter
from server.api.trace import ClientDisconnected, RequestTrace
from server.engine.request import EngineRequest
from server.errors import ErrorCode, QuireError
from server.host_budget import Holding, Use
from server.output.processor import Collector, OutputOptions
from server.output.stops import StopStrings

T = TypeVar("T")


class GenerationEndpoint:
    """One of the two routes, as an ASGI application."""

    def __init__(
        self, state: ApiState, kind: type[GenerationRequest], preparation: Preparation
    ) -> None:
        self._state = state
        self._kind = kind
        self._preparation = preparation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        _check_content_type(scope)
        body = Body()
        with self._state.budget.hold(Use.BODIES) as holding:
            await body.read(scope, receive, holding)
            leaving: list[Callable[[], None]] = []
            work = self._answer(body, holding, trace_of(scope), send, leaving)
            await unless_disconnected(receive, work, leaving)

    async def _answer(
        self,
        body: Body,
        holding: Holding,
        trace: RequestTrace,
        send: Send,
        leaving: list[Callable[[], None]],
    ) -> None:
        request, requests = await self._prepared(body, holding, trace)
        options = OutputOptions(
            stops=StopStrings(request.stop),
            echo=request.echo,
            continuation=self._kind is CompletionRequest,
        )
        generation = Generation(self._state, requests, options, trace)
        leaving.append(generation.abort)
        answer = self._form(request, trace.request_id)
        with self._state.live.listed(trace, tuple(requests)):
            try:
                await generation.submit()
                if request.stream:
                    silence = self._state.limits.stream_keep_alive_s
                    await stream_answer(generation, answer, send, silence)
                else:
                    await whole_answer(generation, answer, send)
            finally:
                generation.close()

    async def _prepared(
        self, body: Body, holding: Holding, trace: RequestTrace
    ) -> tuple[GenerationRequest, list[EngineRequest]]:
        """What the engine is asked, and the rest of the request: its texts are let go."""
        parsed = await self._preparation.read(body, self._kind, holding)
        trace.stream = parsed.request.stream
        self._check_health()
        requests = await self._preparation.engine_requests(parsed, trace.request_id, holding)
        parsed.request.forget_text()
        ids = sum(len(one.prompt_token_ids) for one in requests)
        holding.hold(held_bytes(vars(parsed.request)) + TOKEN_BYTES * ids)
        return parsed.request, requests

    def _check_health(self) -> None:
        health = self._state.health
        if health.draining:
            raise QuireError(
                ErrorCode.SHUTTING_DOWN,
                "The server is stopping and takes no new requests.",
                retry_after=5,
            )
        if health.loading:
            raise still_loading()
        if not health.alive:
            raise QuireError(
                ErrorCode.ENGINE_UNAVAILABLE,
                "The engine is not running. Try again in a few seconds.",
                retry_after=5,
            )

    def _form(self, request: GenerationRequest, request_id: str) -> Answer:
        form: AnswerForm
        if isinstance(request, ChatRequest):
            form, kind = ChatForm(self._state.tokenizer, request), "chat.completion"
        else:
            form, kind = CompletionForm(self._state.tokenizer, request), "text_completion"
        return Answer(
            form,
            kind,
            request_id,
            self._state.model,
            usage_chunk=request.include_usage,
            usage_details=request.usage_details,
            continuous_usage=request.continuous_usage,
        )


async def whole_answer(generation: Generation, answer: Answer, send: Send) -> None:
    collector = Collector(generation.num_choices)
    async with aclosing(generation.deltas()) as deltas:
        async for index, delta in deltas:
            collector.add(index, delta)
    usage = generation.usage(details=answer.usage_details)
    body = to_json(answer.whole(collector.results(), usage))
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def stream_answer(
    generation: Generation, answer: Answer, send: Send, keep_alive_s: float
) -> None:
    """Writes the stream. What it raises after the headers becomes an event in RequestBoundary."""
    headers = [
        (b"content-type", EVENT_STREAM),
        (b"cache-control", b"no-cache"),
        (b"x-accel-buffering", b"no"),  # a proxy must not collect the stream
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})

    def chunks(choices: Iterable[dict[str, Any]]) -> bytes:
        usage = generation.usage() if answer.continuous_usage else None
        return b"".join(answer.chunk(choice, usage) for choice in choices)

    def usage() -> bytes:
        return answer.last_chunk(generation.usage(details=answer.usage_details))

    async with StreamWriter(send, keep_alive_s) as stream:
        opening = (answer.form.opening(index) for index in range(generation.num_choices))
        await stream.write(b"".join(chunks(choices) for choices in opening))
        try:
            async with aclosing(generation.deltas()) as deltas:
                async for index, delta in deltas:
                    await stream.write(chunks(answer.form.changes(index, delta)))
        except QuireError:
            if answer.usage_details:
                await stream.write(usage())  # a request that failed has held memory too
            raise
        await stream.end((usage() if answer.usage_chunk else b"") + DONE)


async def unless_disconnected(
    receive: Receive, work: Coroutine[Any, Any, T], leaving: Sequence[Callable[[], None]] = ()
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
            for call in leaving:
                call()
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
