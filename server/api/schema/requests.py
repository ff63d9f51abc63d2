"""The two requests that generate, field by field: type, bound, default, and what asks for nothing.

Built once, when this module is imported. ``parse_request`` reads a body with them; what the rules
of several fields come to (``token_limit``, ``num_logprobs``) are properties.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Annotated, Any, ClassVar, Self, TypeVar, cast

from pydantic import (
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from server.api.schema.faults import CLASH, fault, first_fault
from server.api.schema.kinds import ModelName, Number, Text, Truth, Whole
from server.api.schema.lists import Biases, Labels, Prompts, Stops, TokenIds
from server.api.schema.messages import Messages
from server.api.schema.not_served import (
    NOT_SERVED_BY_BOTH,
    NOT_SERVED_BY_CHATS,
    NOT_SERVED_BY_COMPLETIONS,
)
from server.api.schema.objects import Key, Nothing, RequestObject, not_served
from server.api.state import ModelCard
from server.engine.request import LOGIT_BIAS, SAMPLING_RANGES
from server.errors import ErrorCode, QuireError
from weights.strict_json import shown


class Route(Enum):
    COMPLETIONS = "/v1/completions"
    CHAT = "/v1/chat/completions"


MAX_STOPS = 16  # evaluation harnesses send 5 and more; OpenAI's own bound is 4
SOME_TEXT = Text(1, 1 << 24)
RULES = (  # of several fields, for which JSON Schema has no words
    "The prompt and max_tokens together fit the model's context, and min_tokens does not exceed "
    "max_tokens. max_tokens and max_completion_tokens are equal where both are given. "
    "stream_options needs stream, and top_logprobs logprobs. Prompts times n make at most 256 "
    "choices. Integers are written without a fraction."
)

MaxTokens = Annotated[int | None, Whole(0, "max_model_len")]
Label = Annotated[
    str | None, Text(0, 1024), Field(description="Changes nothing: for the client's own records.")
]
Switch = Annotated[bool, Truth()]


class StreamOptions(RequestObject):
    refused: ClassVar[Mapping[str, Key]] = not_served(
        "Padding of chunks is not served.", include_obfuscation=(False,)
    )

    include_usage: Annotated[
        Switch, Field(description="A last chunk without choices carries the usage.")
    ] = False
    continuous_usage_stats: Annotated[
        Switch, Field(description="Every chunk carries the usage of the request so far.")
    ] = False

    @property
    def asks(self) -> bool:
        return self.include_usage or self.continuous_usage_stats


class SamplingFields(RequestObject):
    """The fields whose defaults a checkpoint may set (generation_config.json)."""

    temperature: Annotated[
        float | None,
        Number(SAMPLING_RANGES["temperature"]),
        Field(description="0 takes the most likely token."),
    ] = None
    top_p: Annotated[float | None, Number(SAMPLING_RANGES["top_p"])] = None
    top_k: Annotated[
        int | None, Whole(1, (1 << 31) - 1, also=(-1, 0)), Field(description="0 and -1: all.")
    ] = None
    min_p: Annotated[float | None, Number(SAMPLING_RANGES["min_p"])] = None
    repetition_penalty: Annotated[float | None, Number(SAMPLING_RANGES["repetition_penalty"])] = (
        None
    )


class CommonFields(SamplingFields):
    """What both routes have in common."""

    route: ClassVar[Route]
    text_field: ClassVar[str]  # of the prompts: it may be as large as the body
    elsewhere: ClassVar[Mapping[str, Key]] = {}  # the fields of the other route alone

    model: Annotated[
        str | None,
        ModelName(1, 1024),
        Nothing(""),
        Field(description="One model is served: it may be left out."),
    ] = None
    max_tokens: Annotated[
        MaxTokens, Field(description="At most so many tokens are generated for a choice.")
    ] = None
    max_completion_tokens: Annotated[
        MaxTokens, Field(description="The newer name of max_tokens.")
    ] = None
    min_tokens: Annotated[
        int, Whole(0, "max_model_len"), Field(description="Until then no choice ends by itself.")
    ] = 0
    n: Annotated[int, Whole(1, "max_n"), Field(description="Choices for each prompt.")] = 1
    presence_penalty: Annotated[float, Number(SAMPLING_RANGES["presence_penalty"])] = 0.0
    frequency_penalty: Annotated[float, Number(SAMPLING_RANGES["frequency_penalty"])] = 0.0
    stop: Annotated[
        tuple[str, ...],
        Stops(MAX_STOPS, Text(1, 1000)),
        Nothing(""),
        Field(description="Strings that end a choice, and are no part of it."),
    ] = ()
    stop_token_ids: Annotated[tuple[int, ...], TokenIds(0, 64)] = ()
    ignore_eos: Annotated[
        Switch, Field(description="The model's end of a text does not end a choice.")
    ] = False
    seed: Annotated[
        int | None,
        Whole(-(1 << 63), (1 << 63) - 1),
        Field(description="The same seed and request give the same answer."),
    ] = None
    logit_bias: Annotated[
        tuple[tuple[int, float], ...], Biases(1024, Number(LOGIT_BIAS)), Nothing([])
    ] = ()
    stream: Annotated[Switch, Field(description="Answer in server-sent events.")] = False
    stream_options: StreamOptions | None = None
    usage_details: Annotated[
        Switch, Field(description="The usage says what memory and time the request took.")
    ] = False
    priority: Annotated[
        int, Whole(-(1 << 31), (1 << 31) - 1), Field(description="Lower is earlier.")
    ] = 0
    cache_salt: Annotated[
        str,
        Text(1, 256),
        Nothing(""),
        Field(description="Prefixes are shared among requests of one salt only."),
    ] = ""
    user: Label = None
    metadata: Annotated[
        dict[str, str] | None,
        Labels(16, Text(0, 64), Text(0, 512)),
        Field(description="Changes nothing: for the client's own records."),
    ] = None
    prompt_cache_key: Label = None
    prompt_cache_retention: Label = None
    safety_identifier: Label = None
    session_id: Label = None

    @property
    def token_limit(self) -> int | None:
        """By either of its names; None takes what the route gives."""
        new = self.max_completion_tokens
        return self.max_tokens if new is None else new

    @property
    def num_prompts(self) -> int:
        return 1

    @property
    def include_usage(self) -> bool:
        """A stream ends in a chunk with the usage. Its details have no other place."""
        options = self.stream_options
        return self.usage_details or (options is not None and options.include_usage)

    @property
    def continuous_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.continuous_usage_stats

    def forget_text(self) -> None:
        """Lets go of prompts or messages: once there are ids, they are not needed."""
        setattr(self, self.text_field, ())

    @model_validator(mode="after")
    def _agree(self, info: ValidationInfo) -> Self:
        """The rules of several fields."""
        card = cast(ModelCard, info.context)  # always given
        if self.model is not None:
            check_model(self.model, card)
        old, new, limit = self.max_tokens, self.max_completion_tokens, self.token_limit
        if old is not None and new is not None and old != new:
            raise clash(
                "max_completion_tokens",
                f"max_tokens ({old}) and max_completion_tokens ({new}) differ. Send one of them.",
            )
        self._check_own_fields()
        if self.stream_options is not None and self.stream_options.asks and not self.stream:
            raise clash("stream_options", "stream_options needs stream to be true.")
        if limit is not None and self.min_tokens > limit:
            raise clash(
                "min_tokens",
                f"min_tokens ({self.min_tokens}) must not exceed max_tokens ({limit}).",
            )
        if self.num_prompts * self.n > card.max_choices:
            raise clash(
                "n",
                f"{self.num_prompts} prompts with n = {self.n} make more than "
                f"{card.max_choices} choices. Send fewer.",
            )
        return self

    def _check_own_fields(self) -> None:
        """The rules of the route's own fields. Raises what ``clash`` makes."""

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        reference = super().__get_pydantic_json_schema__(core_schema, handler)
        fields = handler.resolve_ref_schema(reference)["properties"]
        for name, key in cls.elsewhere.items():
            fields[name] = {"description": "Of the other route.", **key.describe()}
        return reference


class CompletionRequest(CommonFields):
    model_config = ConfigDict(
        defer_build=False,
        json_schema_extra={
            "description": RULES,
            "examples": [
                {"prompt": "Once upon a time", "max_tokens": 32, "temperature": 0},
                {"prompt": [1, 2, 3], "max_tokens": 5, "logprobs": 3, "stop": ["\n"]},
            ],
        },
    )

    route = Route.COMPLETIONS
    text_field = "prompt"
    refused: ClassVar[Mapping[str, Key]] = {**NOT_SERVED_BY_BOTH, **NOT_SERVED_BY_COMPLETIONS}

    prompt: Annotated[
        tuple[str | tuple[int, ...], ...],
        Prompts(SOME_TEXT, TokenIds(1, 1 << 24)),
        Field(description="Text, texts, token ids, or lists of them. Each is a prompt."),
    ]
    logprobs: Annotated[int | None, Whole(0, "max_logprobs"), Nothing(False)] = None
    echo: Annotated[Switch, Field(description="The answer begins with the prompt.")] = False

    @property
    def num_logprobs(self) -> int | None:
        """Log-probabilities of so many other tokens beside each chosen one; None: of none."""
        return self.logprobs

    @property
    def num_prompts(self) -> int:
        return len(self.prompt)


class ChatRequest(CommonFields):
    model_config = ConfigDict(
        defer_build=False,
        json_schema_extra={
            "description": RULES + " Only an assistant's message may be without content.",
            "examples": [
                {"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 32},
                {
                    "messages": [
                        {"role": "system", "content": "Answer in one word."},
                        {"role": "user", "content": [{"type": "text", "text": "Which planet?"}]},
                    ],
                    "stream": True,
                    "stream_options": {"include_usage": True},
                    "max_completion_tokens": 8,
                },
            ],
        },
    )

    route = Route.CHAT
    text_field = "messages"
    refused: ClassVar[Mapping[str, Key]] = {**NOT_SERVED_BY_BOTH, **NOT_SERVED_BY_CHATS}

    echo: ClassVar[bool] = False  # it would not be an answer in a conversation

    messages: Annotated[list[dict[str, Any]], Messages()]
    logprobs: Switch = False
    top_logprobs: Annotated[
        int | None,
        Whole(0, "max_logprobs"),
        Nothing(0),
        Field(description="Needs logprobs to be true."),
    ] = None

    @property
    def num_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    def _check_own_fields(self) -> None:
        if self.top_logprobs and not self.logprobs:
            raise clash("top_logprobs", "top_logprobs needs logprobs to be true.")


GenerationRequest = CompletionRequest | ChatRequest


def _of_one_alone(one: type[CommonFields], other: type[CommonFields]) -> dict[str, Key]:
    """The fields that ``one`` knows and ``other`` does not, where a default asks for nothing."""
    found = {}
    for name in one.keys.keys() - other.keys.keys():
        key, field = one.keys[name], one.model_fields.get(name)
        default = () if field is None or field.is_required() else (field.default,)
        found[name] = Key((*key.nothing, *(value for value in default if value is not None)))
    return found


CompletionRequest.elsewhere = _of_one_alone(ChatRequest, CompletionRequest)
ChatRequest.elsewhere = _of_one_alone(CompletionRequest, ChatRequest)
Request = TypeVar("Request", bound=CommonFields)


def parse_request(body: Mapping[str, Any], kind: type[Request], model: ModelCard) -> Request:
    """Raises QuireError for the first rule that the body breaks."""
    own = {}
    for name, value in body.items():
        other = kind.elsewhere.get(name)
        if other is None:
            own[name] = value
        elif not other.asks_for_nothing(value):
            message = f"{name} does not belong to {kind.route.value}. Leave it out."
            raise QuireError(ErrorCode.UNSUPPORTED_PARAMETER, message, param=name)
    try:
        return kind.model_validate(own, context=model)
    except ValidationError as error:
        raise first_fault(error, own) from None


def check_model(name: str, model: ModelCard) -> None:
    if name != model.name:
        raise QuireError(
            ErrorCode.MODEL_NOT_FOUND,
            f"The model {shown(name)} does not exist here. This server has {shown(model.name)}.",
            param="model",
        )


def clash(param: str, words: str) -> Exception:
    return fault(CLASH, words, param=param)
