"""The one table of request fields: name, kind, range, default, and where each applies.

Every value that a client sends passes here once. A field that is not in the table is refused by
name: as not served yet, or as unknown. null is as good as absent, as with OpenAI.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from server.api.checks import (
    Biases,
    Boolean,
    Check,
    Choice,
    Integer,
    Number,
    Options,
    Prompt,
    Stops,
    Text,
    TokenIds,
)
from server.api.errors import joined, shown
from server.api.messages import Messages
from server.api.state import GenerationDefaults, ModelCard
from server.errors import ErrorCode, QuireError


class Route(Enum):
    COMPLETIONS = "/v1/completions"
    CHAT = "/v1/chat/completions"


BOTH = frozenset(Route)
COMPLETIONS = frozenset({Route.COMPLETIONS})
CHAT = frozenset({Route.CHAT})


@dataclass(frozen=True, slots=True)
class Field:
    name: str
    check: Check
    routes: frozenset[Route] = BOTH
    default: Any = None
    required: bool = False


SOME_TEXT = Text(1, 1 << 24)
MODEL_NAME = Text(1, 1024)

TEMPERATURE = Number(0, 2)
TOP_P = Number(0, 1, above_low=True)
TOP_K = Integer(1, (1 << 31) - 1, also=(-1,))
MIN_P = Number(0, 1)
PENALTY = Number(-2, 2)
REPETITION_PENALTY = Number(0, 100, above_low=True)

FIELDS = (
    Field("model", MODEL_NAME),  # one model is served: a request may leave it out
    Field("prompt", Prompt(SOME_TEXT, TokenIds(1, 1 << 24)), COMPLETIONS, required=True),
    Field("messages", Messages(4096), CHAT, required=True),
    Field("max_tokens", Integer(0, "max_model_len")),
    Field("max_completion_tokens", Integer(0, "max_model_len"), CHAT),
    Field("min_tokens", Integer(0, "max_model_len"), default=0),
    Field("n", Integer(1, "max_n"), default=1),
    Field("temperature", TEMPERATURE),
    Field("top_p", TOP_P),
    Field("top_k", TOP_K),
    Field("min_p", MIN_P),
    Field("presence_penalty", PENALTY, default=0.0),
    Field("frequency_penalty", PENALTY, default=0.0),
    Field("repetition_penalty", REPETITION_PENALTY),
    Field("stop", Stops(4, Text(1, 1000)), default=()),
    Field("stop_token_ids", TokenIds(0, 64), default=()),
    Field("ignore_eos", Boolean(), default=False),
    Field("seed", Integer(-(1 << 63), (1 << 63) - 1)),
    Field("logit_bias", Biases(1024, Number(-100, 100)), default=()),
    Field("logprobs", Integer(0, "max_logprobs"), COMPLETIONS),
    Field("logprobs", Boolean(), CHAT, default=False),
    Field("top_logprobs", Integer(0, "max_logprobs"), CHAT),
    Field("echo", Boolean(), COMPLETIONS, default=False),
    Field("stream", Boolean(), default=False),
    Field(
        "stream_options",
        Options({"include_usage": Boolean()}, frozenset({"continuous_usage_stats"})),
        default={},
    ),
    Field("usage_details", Boolean(), default=False),
    Field("user", Text(0, 1024)),
    Field("priority", Integer(-(1 << 31), (1 << 31) - 1), default=0),
    Field("cache_salt", Text(1, 256), default=""),
    Field("response_format", Choice(({"type": "text"},), '{"type": "text"}'), CHAT),
)

NOT_SERVED = frozenset(
    (
        "add_generation_prompt",
        "add_special_tokens",
        "allowed_token_ids",
        "audio",
        "bad_words",
        "best_of",
        "chat_template_kwargs",
        "continue_final_message",
        "do_sample",
        "documents",
        "early_stopping",
        "function_call",
        "functions",
        "grammar",
        "guided_choice",
        "guided_grammar",
        "guided_json",
        "guided_regex",
        "include_reasoning",
        "include_stop_str_in_output",
        "length_penalty",
        "logits_processors",
        "metadata",
        "modalities",
        "moderation",
        "no_repeat_ngram_size",
        "num_beams",
        "parallel_tool_calls",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_retention",
        "prompt_logprobs",
        "reasoning_effort",
        "request_id",
        "response_format",
        "return_token_ids",
        "safety_identifier",
        "service_tier",
        "skip_special_tokens",
        "spaces_between_special_tokens",
        "store",
        "structured_outputs",
        "suffix",
        "tool_choice",
        "tools",
        "truncate_prompt_tokens",
        "use_beam_search",
        "verbosity",
        "web_search_options",
    )
)


def table(route: Route) -> Mapping[str, Field]:
    """The fields of one route by name."""
    return {field.name: field for field in FIELDS if route in field.routes}


def read_fields(body: Mapping[str, Any], route: Route, model: ModelCard) -> dict[str, Any]:
    """Every field of the route: the checked value, or its default.

    Raises:
        QuireError: a field is unknown, not served, missing, or holds what it may not.
    """
    fields = table(route)
    for name, value in body.items():
        if name not in fields:
            _refuse(name, value, route, fields)
    found: dict[str, Any] = {}
    for name, field in fields.items():
        value = body.get(name)
        if value is not None:
            found[name] = field.check(value, name, model)
        elif field.required:
            message = f"{name} is missing. {route.value} needs it."
            raise QuireError(ErrorCode.MISSING_PARAMETER, message, param=name)
        else:
            found[name] = field.default
    return found


def _refuse(name: str, value: object, route: Route, fields: Mapping[str, Field]) -> None:
    param = name if len(name) <= 100 else None
    elsewhere = {field.name for field in FIELDS} - fields.keys()
    if name == "chat_template":
        message = "chat_template is refused: the model's own template is always used."
        raise QuireError(ErrorCode.UNSUPPORTED_PARAMETER, message, param=param)
    if name in elsewhere and name not in NOT_SERVED:
        message = f"{name} does not belong to {route.value}. Leave it out."
        raise QuireError(ErrorCode.UNSUPPORTED_PARAMETER, message, param=param)
    if name not in NOT_SERVED:
        message = f"The field {shown(name)} is unknown. Known are: {joined(fields)}."
        raise QuireError(ErrorCode.UNKNOWN_PARAMETER, message, param=param)
    if value is not None:
        message = f"{name} is not served yet. Leave it out."
        raise QuireError(ErrorCode.UNSUPPORTED_PARAMETER, message, param=param)


def generation_defaults(config: Mapping[str, Any], model: ModelCard) -> GenerationDefaults:
    """The sampling values of a generation_config.json as defaults for fields left out.

    transformers writes 0 for "no top_k". Everything else in the file is none of its concern.

    Raises:
        ValueError: a value is not in its field's range; names it.
    """
    found: dict[str, Any] = {}
    for name, check in (
        ("temperature", TEMPERATURE),
        ("top_p", TOP_P),
        ("top_k", TOP_K),
        ("min_p", MIN_P),
        ("repetition_penalty", REPETITION_PENALTY),
    ):
        value = config.get(name)
        if value is None or (name == "top_k" and value == 0):
            continue
        try:
            found[name] = check(value, name, model)
        except QuireError as error:
            raise ValueError(f"generation_config.json: {error.message}") from None
    return GenerationDefaults(**found)
