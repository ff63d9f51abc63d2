"""What is wrong with a value, as its validator says it, and the one refusal that is made of it all.

A validator raises ``fault(kind, words)``: pydantic adds the path and the value, and goes on to the
next field. ``first_fault`` picks the one that comes first in the body, which is what a client
who reads his own request meets first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from server.api.errors import joined
from server.errors import ErrorCode, QuireError
from weights.strict_json import shown

PARAM_CHARACTERS = 200  # of a field's path, as an error repeats it
WRONG_TYPE, WRONG_VALUE = "invalid_type", "invalid_value"
MISSING, CLASH = "missing", "clash"
NOT_SERVED, UNKNOWN = "unsupported_parameter", "unknown_parameter"


def fault(kind: str, words: str, /, **more: Any) -> PydanticCustomError:
    """``words`` end "... must be" for a wrong type or value; elsewhere they are a sentence.

    ``key`` (of an object) or ``at`` is the rest of the path, where it is deeper than what was
    validated, and ``value`` what stands there. ``name`` and ``known`` are of an unknown key.
    """
    return PydanticCustomError(kind, "{words}", {"words": words, **more})


def first_fault(error: ValidationError, body: Mapping[str, Any]) -> QuireError:
    """The refusal of the fault that comes first in the body. A field that is missing comes after
    all that are there."""
    found = error.errors(include_url=False)
    return _refusal(min(found, key=lambda one: _place(one, body)))


def only_missing(error: ValidationError) -> bool:
    """Nothing is wrong with the object but that it lacks fields."""
    found = error.errors(include_url=False)
    return all(one["type"] == MISSING and len(one["loc"]) == 1 for one in found)


def _place(one: ErrorDetails, body: Mapping[str, Any]) -> list[int]:
    value: Any = body
    place: list[int] = []
    for step in _steps(one):
        if isinstance(step, int):
            place.append(step)
            value = value[step]
        elif step in value:
            place.append(list(value).index(step))
            value = value[step]
        else:
            place.append(len(value))
    return place


def _steps(one: ErrorDetails) -> list[str | int]:
    """The path, without what pydantic puts there for a member of a union."""
    return [step for step in one["loc"] if isinstance(step, int) or not is_tag(step)]


def tag(name: str) -> str:
    """The name of a member of a union, which no key of a served field looks like."""
    return f"<{name}>"


def is_tag(step: str) -> bool:
    return step.startswith("<")


def _refusal(one: ErrorDetails) -> QuireError:
    kind, more = one["type"], one.get("ctx", {})
    steps = _steps(one)
    if "key" in more:
        steps.append(more["key"])
    path = ""
    for step in steps:
        path += f"[{step}]" if isinstance(step, int) else f".{step}" if path else step
    path += more.get("at", "")
    value = more.get("value", one["input"])
    if kind == MISSING:
        message = f"{path} is required and missing."
        return QuireError(ErrorCode.MISSING_PARAMETER, message, param=path)
    if kind == UNKNOWN:
        return _unknown(path, more["name"], more["known"])
    words = more["words"]
    if kind == CLASH:
        return QuireError(ErrorCode.INVALID_VALUE, words, param=more["param"])
    if kind == NOT_SERVED:
        message = f"{words} {path} is {shown(value)}: leave it out."
        return QuireError(ErrorCode.UNSUPPORTED_PARAMETER, message, param=path)
    code = ErrorCode.INVALID_TYPE if kind == WRONG_TYPE else ErrorCode.INVALID_VALUE
    return QuireError(code, f"{path} must be {words}, not {shown(value)}.", param=path)


def _unknown(path: str, name: str, known: list[str]) -> QuireError:
    """An unknown key: most likely a misspelt one, whose wish must not vanish."""
    where = f"{path}." if path else ""
    message = f"The field {where}{shown(name)} is unknown. Known: {joined(known)}."
    param = where + name
    return QuireError(
        ErrorCode.UNKNOWN_PARAMETER,
        message,
        param=param if len(param) <= PARAM_CHARACTERS else None,
    )
