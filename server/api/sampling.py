"""From a validated request to what the engine is asked, with what the model's folder presets."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from server.api.schema.faults import first_fault
from server.api.schema.requests import GenerationRequest, Route, SamplingFields
from server.api.state import GenerationDefaults, ModelCard
from server.engine.request import SamplingParams
from server.errors import ErrorCode, QuireError

DEFAULT_MAX_TOKENS = 16
NUM_SEEDS = 1 << 63


def generation_defaults(config: Mapping[str, Any], model: ModelCard) -> GenerationDefaults:
    """The sampling values of a generation_config.json as defaults for fields left out.

    transformers writes 0 for "no top_k". Everything else in the file is none of its concern.

    Raises:
        ValueError: a value is not in its field's range; names it.
    """
    given = {name: config[name] for name in SamplingFields.served if name in config}
    if given.get("top_k") == 0:
        del given["top_k"]
    try:
        found = SamplingFields.model_validate(given, context=model)
    except ValidationError as error:
        message = first_fault(error, given).message
        raise ValueError(f"generation_config.json: {message}") from None
    return GenerationDefaults(**found.model_dump(exclude_unset=True))


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
    max_tokens = _room_for(request, model, num_prompt_tokens)
    seed = request.seed

    def given(name: str) -> Any:
        value = getattr(request, name)
        return getattr(defaults, name) if value is None else value

    return SamplingParams(
        seed=secrets.randbelow(NUM_SEEDS) if seed is None else seed % NUM_SEEDS,
        max_tokens=max_tokens,
        min_tokens=min(request.min_tokens, max_tokens),
        temperature=given("temperature"),
        top_k=given("top_k"),
        top_p=given("top_p"),
        min_p=given("min_p"),
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        repetition_penalty=given("repetition_penalty"),
        logit_bias=request.logit_bias,
        stop_token_ids=request.stop_token_ids,
        ignore_eos=request.ignore_eos,
        logprobs=request.num_logprobs,
        prompt_logprobs=request.num_logprobs if request.echo else None,
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
    room = model.max_model_len - num_prompt_tokens
    wanted = request.token_limit
    if wanted is None:
        wanted = min(room, DEFAULT_MAX_TOKENS) if request.route is Route.COMPLETIONS else room
        wanted = max(1, wanted)
    if wanted > room:
        given = f"the prompt has {num_prompt_tokens} tokens and max_tokens is {wanted}"
        raise context_error(model, given, request.text_field)
    return wanted
