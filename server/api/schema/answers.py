"""What answers look like, as models: the OpenAPI document is made from them.

Answers are written as dictionaries (server.api.routes.responses), for the sake of time; tests hold
each kind of answer to its model. A key that a model does not name is not in an answer.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

FinishReason = Literal["stop", "length"]


class AnswerObject(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", defer_build=True)


class PromptTokensDetails(AnswerObject):
    cached_tokens: int


class MemoryUsage(AnswerObject):
    """What a request has held of the KV cache. ``byte_seconds`` divides shared blocks."""

    peak_blocks: int
    peak_bytes: int
    byte_seconds: float
    block_bytes: int


class Timings(AnswerObject):
    """Seconds; null for what the request has not come to."""

    queue_seconds: float | None
    prefill_seconds: float | None
    time_to_first_token_seconds: float | None
    decode_seconds: float | None
    total_seconds: float | None


class Usage(AnswerObject):
    """Over all prompts and choices. ``memory`` and ``timings`` with usage_details."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    memory: MemoryUsage | None = None
    timings: Timings | None = None


class Head(AnswerObject):
    id: str
    created: int = Field(description="Unix seconds.")
    model: str
    system_fingerprint: str


class CompletionLogprobs(AnswerObject):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(AnswerObject):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None = Field(description="null while the choice goes on.")
    stop_reason: str | int | None = Field(description="The stop string or id that ended it.")


class Completion(Head):
    object: Literal["text_completion"]
    choices: list[CompletionChoice]
    usage: Usage


class CompletionChunk(Head):
    """One event of a stream. ``usage`` where stream_options or usage_details ask for it."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]
    usage: Usage | None = None


class ChatToken(AnswerObject):
    token: str
    logprob: float | None
    bytes: list[int]


class ChatTokenLogprobs(ChatToken):
    top_logprobs: list[ChatToken]


class ChatLogprobs(AnswerObject):
    content: list[ChatTokenLogprobs]
    refusal: None


class ChatMessage(AnswerObject):
    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(AnswerObject):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason
    stop_reason: str | int | None


class ChatCompletion(Head):
    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: Usage


class ChatDelta(AnswerObject):
    role: Literal["assistant"] | None = None
    content: str | None = None
    refusal: None = None


class ChatChunkChoice(AnswerObject):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None
    stop_reason: str | int | None = Field(default=None, description="With a finish_reason.")


class ChatCompletionChunk(Head):
    """One event of a stream. ``usage`` where stream_options or usage_details ask for it."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice]
    usage: Usage | None = None


class ErrorDetail(AnswerObject):
    message: str = Field(description="What was given, what is allowed, what to do.")
    type: Literal["invalid_request_error", "rate_limit_error", "server_error"]
    param: str | None = Field(description="The field at fault, by its path.")
    code: str


class ErrorAnswer(AnswerObject):
    """The one shape of every refusal. A stream that has begun ends in an event of it."""

    error: ErrorDetail


class ServedModel(AnswerObject):
    id: str
    object: Literal["model"]
    created: int = Field(description="Unix seconds of the server's start.")
    owned_by: Literal["quire"]
    max_model_len: int = Field(description="Tokens of a prompt and its answer together.")
    vocab_size: int
    chat: bool = Field(description="Whether chats are served: the model has a usable template.")


class ServedModels(AnswerObject):
    object: Literal["list"]
    data: list[ServedModel]


class Status(AnswerObject):
    status: Literal["ok", "ready"]


class Version(BaseModel):
    """Strings by name: version, model, dtype, device, and more."""

    model_config = ConfigDict(strict=True, extra="allow", defer_build=True)
    __pydantic_extra__: dict[str, str]

    version: str


class LiveMemory(MemoryUsage):
    """``share_bytes`` divides shared blocks."""

    blocks: int
    bytes: int
    shared_blocks: int
    share_bytes: int


class Request(AnswerObject):
    request_id: str
    client_request_id: str | None
    route: str
    stream: bool
    choices: int
    prompt_tokens: int
    memory: LiveMemory
    timings: Timings


class LiveRequestList(AnswerObject):
    requests: list[Request]


class MemoryTree(BaseModel):
    """Where every byte is: the devices with their kinds of memory, and the host's processes."""

    model_config = ConfigDict(strict=True, extra="allow", defer_build=True)

    devices: list[dict[str, Any]]
    host: dict[str, Any]
    notes: list[str]
