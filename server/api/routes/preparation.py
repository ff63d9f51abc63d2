"""From a body to what the engine is asked, each stage within the memory budget.

    body -> counted -> parsed, validated -> rendered (chat) -> tokenised -> engine requests

Counting, parsing and tokenising a large body run in threads, so that no turn of the event loop
handles more than SMALL bytes of it; bodies are parsed one at a time, because two parsers would keep
the interpreter from the loop for twice as long. What a stage has made replaces what it was made of.
"""

from __future__ import annotations

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor

from server.api.body import Body, parse_object
from server.api.json_shape import JsonLimits, measure
from server.api.sampling import context_error, sampling_params
from server.api.schema.requests import (
    ChatRequest,
    CompletionRequest,
    GenerationRequest,
    parse_request,
)
from server.api.sizes import (
    TOKEN_BYTES,
    counting_bytes,
    held_bytes,
    parsing_bytes,
    rendering_bytes,
    tokenising_bytes,
)
from server.api.state import ApiState
from server.engine.request import EngineRequest, Task
from server.errors import ErrorCode, QuireError
from server.host_budget import Holding, Use
from weights.strict_json import shown

SMALL = 16 * 1024  # bytes of a body that is parsed at once, on the loop: at most 8192 values
LARGE_TEXT = 64 * 1024  # characters; what it comes to at the least is counted in a thread
# The longest text that is tokenised where its length does not tell that it is too long: about a
# second of one core, or for long contexts four times what a token usually takes.
UNCOUNTED_BYTES_PER_TOKEN = 16
UNCOUNTED_TEXT_BYTES = 1024 * 1024


class Parsed:
    """A validated request, and what it takes: added up where it was parsed, off the loop."""

    def __init__(self, request: GenerationRequest) -> None:
        self.request = request
        self.held_bytes = held_bytes(vars(request))
        self.rendering_bytes = (
            rendering_bytes(request.messages) if isinstance(request, ChatRequest) else 0
        )


class Preparation:
    """Shared by both routes. ``close`` ends its thread."""

    def __init__(self, state: ApiState) -> None:
        self._state = state
        self._budget = state.budget
        self._parser = ThreadPoolExecutor(1, thread_name_prefix="parser")

    def close(self) -> None:
        self._parser.shutdown(wait=False, cancel_futures=True)

    async def read(self, body: Body, kind: type[GenerationRequest], holding: Holding) -> Parsed:
        """Raises QuireError."""
        parsed = await self._parsed(body.take(), kind)
        holding.hold(parsed.held_bytes, Use.REQUESTS)
        return parsed

    async def engine_requests(
        self, parsed: Parsed, request_id: str, holding: Holding
    ) -> list[EngineRequest]:
        """One engine request a prompt, tokenised and within the context. Raises QuireError."""
        request, base = parsed.request, holding.nbytes
        if isinstance(request, ChatRequest):
            text = await self._rendered(request, parsed.rendering_bytes)
            holding.hold(base + sys.getsizeof(text))
            prompts = [await self._tokens(text, "messages", add_special_tokens=False)]
        else:
            prompts = []
            for prompt in request.prompt:
                is_text = isinstance(prompt, str)
                ids = await self._tokens(prompt, "prompt") if isinstance(prompt, str) else prompt
                prompts.append(ids)
                base += TOKEN_BYTES * len(ids) * is_text
                holding.hold(base)
        return [
            self._engine_request(request, f"{request_id}-{index}", ids)
            for index, ids in enumerate(prompts)
        ]

    def _limits(self, kind: type[GenerationRequest]) -> JsonLimits:
        limits = self._state.limits
        ids = limits.max_prompt_ids if kind is CompletionRequest else 0
        return JsonLimits(
            limits.max_json_depth, limits.max_json_containers, limits.max_json_values + ids
        )

    async def _parsed(self, body: bytes, kind: type[GenerationRequest]) -> Parsed:
        limits, model = self._limits(kind), self._state.model

        def parse() -> Parsed:
            return Parsed(parse_request(parse_object(body), kind, model))

        if len(body) < SMALL:
            measure(body, limits)
            return parse()
        shape = await self._budget.in_thread(
            self._parser,
            counting_bytes(body),
            "Counting the body's values",
            lambda: measure(body, limits),
        )
        return await self._budget.in_thread(
            self._parser,
            parsing_bytes(body, shape),
            "Parsing the body",
            parse,
        )

    async def _rendered(self, request: ChatRequest, nbytes: int) -> str:
        template = self._state.chat_template
        if template is None:
            raise QuireError(
                ErrorCode.NO_CHAT_TEMPLATE,
                "This model has no chat template. Use /v1/completions.",
                param="messages",
            )
        async with self._budget.working(nbytes, "Rendering the chat"):
            return await template.render(request.messages)

    async def _tokens(
        self, text: str, param: str, *, add_special_tokens: bool = True
    ) -> tuple[int, ...]:
        tokenizer, model = self._state.tokenizer, self._state.model
        if len(text) < LARGE_TEXT:
            least = tokenizer.least_tokens(text)
        else:
            least = await asyncio.to_thread(tokenizer.least_tokens, text)
        if least > model.max_model_len:
            raise context_error(model, f"this text has at least {least}", param)
        most = max(UNCOUNTED_TEXT_BYTES, UNCOUNTED_BYTES_PER_TOKEN * model.max_model_len)
        if not tokenizer.counts_ahead and len(text.encode(errors="replace")) > most:
            raise context_error(model, f"this text has more than {most} bytes", param)
        ids = await self._budget.in_thread(
            tokenizer.threads,
            tokenising_bytes(text),
            "Tokenising the text",
            lambda: tuple(tokenizer.encode(text, add_special_tokens=add_special_tokens)),
        )
        if not ids:
            raise QuireError(
                ErrorCode.INVALID_VALUE,
                f"{param} makes no tokens: {shown(text)}. Send some text.",
                param=param,
            )
        return ids

    def _engine_request(
        self, request: GenerationRequest, request_id: str, ids: tuple[int, ...]
    ) -> EngineRequest:
        return EngineRequest(
            request_id=request_id,
            prompt_token_ids=ids,
            task=Task.GENERATE,
            sampling=sampling_params(request, self._state.defaults, self._state.model, len(ids)),
            n=request.n,
            priority=request.priority,
            tenant=request.user or "",
            cache_salt=request.cache_salt,
            reports_memory=request.usage_details,
        )
