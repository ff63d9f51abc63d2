"""From a body's fields to what the engine is asked: rules that concern several fields at once."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from server.api.errors import shown
from server.api.fields import Route, read_fields
from server.api.state import GenerationDefaults, ModelCard
from server.engine.request import SamplingParams
from server.errors import ErrorCode, QuireError

DEFAULT_MAX_TOKENS = 16
NUM_SEEDS = 1 << 63
TEXTS = frozenset(("prompt", "messages"))  # the fields that may be as large as the body


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A validated request of either route, its prompts not yet tokenised.

    ``prompts`` are texts or token ids (completions); ``messages`` a conversation (chat).
    ``max_tokens`` None takes what the route gives: 16, or the rest of the context for a chat.
    """

    route: Route
    prompts: tuple[str | tuple[int, ...], ...]
    messages: tuple[dict[str, Any], ...]
    fields: Mapping[str, Any]
    max_tokens: int | None
    logprobs: int | None

    @property
    def n(self) -> int:
        return int(self.fields["n"])

    @property
    def stops(self) -> tuple[str, ...]:
        return tuple(self.fields["stop"])

    @property
    def echo(self) -> bool:
        return bool(self.fields.get("echo", False))

    @property
    def stream(self) -> bool:
        return bool(self.fields["stream"])

    @property
    def usage_details(self) -> bool:
        return bool(self.fields["usage_details"])

    @property
    def include_usage(self) -> bool:
        """A stream ends in a chunk with the usage. Its details have no other place."""
        return self.usage_details or bool(self.fields["stream_options"].get("include_usage"))

    @property
    def continuous_usage(self) -> bool:
        """Every chunk of a stream carries the usage so far."""
        return bool(self.fields["stream_options"].get("continuous_usage_stats"))

    def without_text(self) -> GenerationRequest:
        """The same, with neither prompts nor messages: once there are ids, nobody needs them."""
        fields = {name: self.fields[name] for name in self.fields.keys() - TEXTS}
        return replace(self, prompts=(), messages=(), fields=fields)


def validate(body: Mapping[str, Any], route: Route, model: ModelCard) -> GenerationRequest:
    """Raises QuireError for the first rule that the body breaks."""
    fields = read_fields(body, route, model)
    if fields["model"] is not None:
        check_model(fields["model"], model)
    prompts = fields.get("prompt", ())
    request = GenerationRequest(
        route=route,
        prompts=prompts,
        messages=fields.get("messages", ()),
        fields=fields,
        max_tokens=_max_tokens(fields),
        logprobs=_logprobs(fields, route),
    )
    if any(fields["stream_options"].values()) and not request.stream:
        raise _clash("stream_options", "stream_options needs stream to be true.")
    if request.max_tokens is not None and fields["min_tokens"] > request.max_tokens:
        raise _clash(
            "min_tokens",
            f"min_tokens ({fields['min_tokens']}) must not exceed "
            f"max_tokens ({request.max_tokens}).",
        )
    if len(prompts) * request.n > model.max_choices:
        raise _clash(
            "n",
            f"{len(prompts)} prompts with n = {request.n} make more than "
            f"{model.max_choices} choices. Send fewer.",
        )
    return request


def check_model(name: str, model: ModelCard) -> None:
    if name != model.name:
        raise QuireError(
            ErrorCode.MODEL_NOT_FOUND,
            f"The model {shown(name)} does not exist here. This server has {shown(model.name)}.",
            param="model",
        )


def sampling_params(
    request: GenerationRequest,
    defaults: GenerationDefaults,
    model: ModelCard,
    num_prompt_tokens: int,
) -> SamplingParams:
    """The engine's parameters for one prompt of so many tokens.

    Raises:
        QuireError: the prompt and what is to be generated exceed the context.
    """
    fields = request.fields
    max_tokens = _room_for(request, model, num_prompt_tokens)
    seed = fields["seed"]

    def given(name: str) -> Any:
        return getattr(defaults, name) if fields[name] is None else fields[name]

    return SamplingParams(
        seed=secrets.randbelow(NUM_SEEDS) if seed is None else seed % NUM_SEEDS,
        max_tokens=max_tokens,
        min_tokens=min(fields["min_tokens"], max_tokens),
        temperature=given("temperature"),
        top_k=given("top_k"),
        top_p=given("top_p"),
        min_p=given("min_p"),
        presence_penalty=fields["presence_penalty"],
        frequency_penalty=fields["frequency_penalty"],
        repetition_penalty=given("repetition_penalty"),
        logit_bias=fields["logit_bias"],
        stop_token_ids=fields["stop_token_ids"],
        ignore_eos=fields["ignore_eos"],
        logprobs=request.logprobs,
        prompt_logprobs=request.logprobs if request.echo else None,
    )


def context_error(model: ModelCard, given: str, param: str) -> QuireError:
    return QuireError(
        ErrorCode.CONTEXT_LENGTH,
        f"The model's context is {model.max_model_len} tokens, but {given}. "
        "Shorten the prompt or lower max_tokens.",
        param=param,
    )


def _room_for(request: GenerationRequest, model: ModelCard, num_prompt_tokens: int) -> int:
    """How many tokens may be generated. At least one, unless none was asked for."""
    param = "prompt" if request.route is Route.COMPLETIONS else "messages"
    room = model.max_model_len - num_prompt_tokens
    wanted = request.max_tokens
    if wanted is None:
        wanted = min(room, DEFAULT_MAX_TOKENS) if request.route is Route.COMPLETIONS else room
        wanted = max(1, wanted)
    if wanted > room:
        given = f"the prompt has {num_prompt_tokens} tokens and max_tokens is {wanted}"
        raise context_error(model, given, param)
    return wanted


def _max_tokens(fields: Mapping[str, Any]) -> int | None:
    old, new = fields["max_tokens"], fields["max_completion_tokens"]
    if old is not None and new is not None and old != new:
        message = f"max_tokens ({old}) and max_completion_tokens ({new}) differ. Send one of them."
        raise _clash("max_completion_tokens", message)
    found: int | None = old if new is None else new
    return found


def _logprobs(fields: Mapping[str, Any], route: Route) -> int | None:
    if route is Route.COMPLETIONS:
        count: int | None = fields["logprobs"]
        return count
    top: int | None = fields["top_logprobs"]
    if top and not fields["logprobs"]:
        raise _clash("top_logprobs", "top_logprobs needs logprobs to be true.")
    return (top or 0) if fields["logprobs"] else None


def _clash(param: str, message: str) -> QuireError:
    return QuireError(ErrorCode.INVALID_VALUE, message, param=param)
