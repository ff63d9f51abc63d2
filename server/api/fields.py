"""Reads a request's body by the table of fields (server.api.field_table)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from server.api.field_table import (
    MIN_P,
    REPETITION_PENALTY,
    TEMPERATURE,
    TOP_K,
    TOP_P,
    Route,
    elsewhere,
    table,
)
from server.api.state import GenerationDefaults, ModelCard
from server.errors import ErrorCode, QuireError

__all__ = ["Route", "generation_defaults", "read_fields"]


def read_fields(body: Mapping[str, Any], route: Route, model: ModelCard) -> dict[str, Any]:
    """Every served field of the route: the checked value, or its default.

    Raises:
        QuireError: a field is unknown, not served, missing, or holds what it may not.
    """
    fields, others = table(route), elsewhere(route)
    own: dict[str, Any] = {}
    for name, value in body.items():
        if name in fields or name not in others:
            own[name] = value
            continue
        field = others[name]
        if not (field.asks_for_nothing(value) or field.is_default(value)):
            message = f"{name} does not belong to {route.value}. Leave it out."
            raise QuireError(ErrorCode.UNSUPPORTED_PARAMETER, message, param=name)
    return fields.read(own, model)


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
