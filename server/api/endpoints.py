"""POST /v1/completions and /v1/chat/completions: one way for both, from body to last byte.

    body -> JSON -> validator -> template, tokenizer -> engine -> OutputProcessor -> JSON or SSE

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
from server.api.errors import shown, still_loading
from server.api.fields import Route
from server.api.generation import Generation
from server.api.json_body import parse_object
from server.api.middleware import EVENT_STREAM, header, read_body, trace_of
from server.api.state import ApiState
from server.api.stream import StreamWriter
from server.api.trace import ClientDisconnected, RequestTrace
from server.api.validation import GenerationRequest, context_error, sampling_params, validate
from server.engine.request import EngineRequest
from server.errors import ErrorCode, QuireError
from server.output.processor import Collector, OutputOptions
from server.output.stops import StopStrings

LARGE_BODY = 64 * 1024  # bytes; parsed in a thread from here on
# The longest text that is tokenised where its length does not tell that it is too long: about a
# second of one core, or for long contexts four times what a token usually takes.
UNCOUNTED_BYTES_PER_TOKEN = 16
UNCOUNTED_TEXT_BYTES = 1024 * 1024
T = TypeVar("T")


class GenerationEndpoint:
    """One of the two routes, as an ASGI application."""

    def __init__(self, state: ApiState, route: Route) -> None:
        self._state = state
        self._route = route

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        _check_content_type(scope)
        body = await read_body(receive)
        leaving: list[Callable[[], None]] = []
        work = self._answer(body, trace_of(scope), send, leaving)
        await unless_disconnected(receive, work, leaving)

    async def _answer(
        self, body: bytes, trace: RequestTrace, send: Send, leaving: list[Callable[[], None]]
    ) -> None:
        request = await self._read(body)
        trace.stream = request.stream
        self._check_health()
        requests = await self._engine_requests(request, trace.request_id)
        options = OutputOptions(
            stops=StopStrings(request.stops),
            echo=request.echo,
            continuation=self._route is Route.COMPLETIONS,
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

    async def _read(self, body: bytes) -> GenerationRequest:
        depth = self._state.limits.max_json_depth
        if len(body) < LARGE_BODY:
            return validate(parse_object(body, depth), self._route, self._state.model)

        def read() -> GenerationRequest:
            return validate(parse_object(body, depth), self._route, self._state.model)

        return await asyncio.to_thread(read)

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

    async def _engine_requests(
        self, request: GenerationRequest, request_id: str
    ) -> list[EngineRequest]:
        """One engine request a prompt, tokenised and within the context."""
        if self._route is Route.CHAT:
            prompts = [await self._chat_prompt(request)]
        else:
            prompts = [
                await self._tokens(prompt, "prompt") if isinstance(prompt, str) else prompt
                for prompt in request.prompts
            ]
        return [
            EngineRequest(
                request_id=f"{request_id}-{index}",
                prompt_token_ids=tuple(ids),
                sampling=sampling_params(
                    request, self._state.defaults, self._state.model, len(ids)
                ),
                n=request.n,
                priority=request.fields["priority"],
                tenant=request.fields["user"] or "",
                cache_salt=request.fields["cache_salt"],
                reports_memory=request.usage_details,
            )
            for index, ids in enumerate(prompts)
        ]

    async def _chat_prompt(self, request: GenerationRequest) -> tuple[int, ...]:
        template = self._state.chat_template
        if template is None:
            raise QuireError(
                ErrorCode.NO_CHAT_TEMPLATE,
                "This model has no chat template. Use /v1/completions.",
                param="messages",
            )
        text = await template.render(request.messages)
        return await self._tokens(text, "messages", add_special_tokens=False)

    async def _tokens(
        self, text: str, param: str, *, add_special_tokens: bool = True
    ) -> tuple[int, ...]:
        tokenizer, model = self._state.tokenizer, self._state.model
        if len(text) < LARGE_BODY:
            least = tokenizer.least_tokens(text)
        else:
            least = await asyncio.to_thread(tokenizer.least_tokens, text)
        if least > model.max_model_len:
            raise context_error(model, f"this text has at least {least}", param)
        most = max(UNCOUNTED_TEXT_BYTES, UNCOUNTED_BYTES_PER_TOKEN * model.max_model_len)
        if not tokenizer.counts_ahead and len(text.encode(errors="replace")) > most:
            raise context_error(model, f"this text has more than {most} bytes", param)
        ids = await tokenizer.encode_in_thread(text, add_special_tokens=add_special_tokens)
        if not ids:
            raise QuireError(
                ErrorCode.INVALID_VALUE,
                f"{param} makes no tokens: {shown(text)}. Send some text.",
                param=param,
            )
        return tuple(ids)

    def _form(self, request: GenerationRequest, request_id: str) -> Answer:
        form: AnswerForm
        if self._route is Route.CHAT:
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
