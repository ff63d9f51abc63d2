"""The JSON objects of both routes: whole answers and stream chunks, complete as OpenAI's."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from server.api.schema.requests import GenerationRequest
from server.api.state import ModelCard
from server.output.choice import Delta
from server.output.logprobs import TokenLogprob, chat_logprobs, completion_logprobs
from server.output.processor import ChoiceResult
from server.text.tokenizer import Tokenizer

DONE = b"data: [DONE]\n\n"


def event(data: Mapping[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + to_json(data) + b"\n\n"


def to_json(data: Mapping[str, Any]) -> bytes:
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


class ResponseFormat(Protocol):
    """How one route writes its answers. A choice is a dictionary of its ``choices`` list."""

    def first_chunks(self, index: int) -> list[dict[str, Any]]:
        """What a stream says of a choice before its first token."""
        ...

    def chunks(self, index: int, delta: Delta) -> list[dict[str, Any]]: ...

    def full(self, result: ChoiceResult) -> dict[str, Any]: ...


class ResponseBuilder:
    """Wraps choices in the object that carries them."""

    def __init__(
        self,
        form: ResponseFormat,
        kind: str,
        request_id: str,
        model: ModelCard,
        *,
        usage_chunk: bool,
        usage_details: bool = False,
        continuous_usage: bool = False,
    ) -> None:
        self.form = form
        self.usage_chunk = usage_chunk
        self.usage_details = usage_details
        self.continuous_usage = continuous_usage
        prefix = "chatcmpl" if kind == "chat.completion" else "cmpl"
        self._kind = kind
        self._head = {
            "id": f"{prefix}-{request_id}",
            "object": kind,
            "created": int(time.time()),
            "model": model.name,
            "system_fingerprint": model.system_fingerprint,
        }

    def full(self, results: Sequence[ChoiceResult], usage: Mapping[str, Any]) -> dict[str, Any]:
        choices = [self.form.full(result) for result in results]
        return {**self._head, "choices": choices, "usage": usage}

    def chunk(self, choice: dict[str, Any], usage: Mapping[str, Any] | None = None) -> bytes:
        """``usage`` is the whole request's so far, where every chunk is to carry it."""
        more = {"usage": usage} if self.usage_chunk or self.continuous_usage else {}
        return event({**self._chunk_head, "choices": [choice], **more})

    def last_chunk(self, usage: Mapping[str, Any]) -> bytes:
        return event({**self._chunk_head, "choices": [], "usage": usage})

    @property
    def _chunk_head(self) -> dict[str, Any]:
        suffix = ".chunk" if self._kind == "chat.completion" else ""
        return {**self._head, "object": self._kind + suffix}


class CompletionFormat:
    """/v1/completions."""

    def __init__(self, tokenizer: Tokenizer, request: GenerationRequest) -> None:
        self._tokenizer = tokenizer
        self._wants_logprobs = request.num_logprobs is not None

    def first_chunks(self, index: int) -> list[dict[str, Any]]:
        return []

    def chunks(self, index: int, delta: Delta) -> list[dict[str, Any]]:
        return [self._choice(index, delta.text, delta.logprobs, delta)]

    def full(self, result: ChoiceResult) -> dict[str, Any]:
        return self._choice(result.index, result.text, result.logprobs, result)

    def _choice(
        self,
        index: int,
        text: str,
        entries: Sequence[TokenLogprob],
        end: Delta | ChoiceResult,
    ) -> dict[str, Any]:
        logprobs = completion_logprobs(self._tokenizer, entries) if self._wants_logprobs else None
        return {
            "index": index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": end.finish_reason,
            "stop_reason": end.stop_reason,
        }


class ChatFormat:
    """/v1/chat/completions."""

    def __init__(self, tokenizer: Tokenizer, request: GenerationRequest) -> None:
        self._tokenizer = tokenizer
        self._wants_logprobs = request.num_logprobs is not None

    def first_chunks(self, index: int) -> list[dict[str, Any]]:
        return [self._change(index, {"role": "assistant", "content": "", "refusal": None})]

    def chunks(self, index: int, delta: Delta) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        if delta.text or delta.logprobs:
            change = self._change(index, {"content": delta.text})
            change["logprobs"] = self._logprobs(delta.logprobs)
            found.append(change)
        if delta.finish_reason:
            change = self._change(index, {})
            change["finish_reason"] = delta.finish_reason
            change["stop_reason"] = delta.stop_reason
            found.append(change)
        return found

    def full(self, result: ChoiceResult) -> dict[str, Any]:
        return {
            "index": result.index,
            "message": {"role": "assistant", "content": result.text, "refusal": None},
            "logprobs": self._logprobs(result.logprobs),
            "finish_reason": result.finish_reason,
            "stop_reason": result.stop_reason,
        }

    def _change(self, index: int, delta: dict[str, Any]) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def _logprobs(self, entries: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        return chat_logprobs(self._tokenizer, entries) if self._wants_logprobs else None
