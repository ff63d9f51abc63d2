"""The messages of a chat: roles and text. What else a message may hold is refused by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from server.api.errors import joined, shown, wrong_type, wrong_value
from server.api.state import ModelCard
from server.errors import ErrorCode, QuireError

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
NOT_SERVED_ROLES = ("tool", "function")
NOT_SERVED_PARTS = ("image_url", "input_audio", "file", "video_url", "audio_url", "refusal")
NOT_SERVED_FIELDS = (
    "tool_calls",
    "tool_call_id",
    "function_call",
    "audio",
    "refusal",
    "reasoning_content",
    "reasoning",
)


@dataclass(frozen=True, slots=True)
class Messages:
    """A list of messages, given to the template as {"role", "content"[, "name"]}.

    A developer message is what older templates call system. Content stays in its form, a text or a
    list of text parts: the template decides what becomes of it.
    """

    most: int

    def __call__(self, value: object, param: str, model: ModelCard) -> tuple[dict[str, Any], ...]:
        if not isinstance(value, list):
            raise wrong_type(param, value, "a list of messages")
        if not 1 <= len(value) <= self.most:
            raise wrong_value(param, value, f"a list of 1 to {self.most} messages")
        return tuple(_message(item, f"{param}[{index}]") for index, item in enumerate(value))


def _message(value: object, param: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise wrong_type(param, value, "an object with role and content")
    for name, item in value.items():
        if name in ("role", "content", "name") or item is None:
            continue
        if name in NOT_SERVED_FIELDS:
            raise _not_served(f"{param}.{name}")
        known = joined(("role", "content", "name"))
        message = f"{param} holds an unknown field {shown(name)}. Known are: {known}."
        raise QuireError(ErrorCode.UNKNOWN_PARAMETER, message, param=param)
    found: dict[str, Any] = {
        "role": _role(value.get("role"), f"{param}.role"),
        "content": _content(value.get("content"), f"{param}.content"),
    }
    if value.get("name") is not None:
        found["name"] = _text(value["name"], f"{param}.name")
    return found


def _role(value: object, param: str) -> str:
    if value is None:
        raise _missing(param)
    role = _text(value, param)
    if role in NOT_SERVED_ROLES:
        raise _not_served(f"{param} {role}", param)
    if role not in ROLES:
        raise wrong_value(param, role, f"one of {joined(ROLES)}")
    return ROLES[role]


def _content(value: object, param: str) -> str | list[dict[str, str]]:
    if value is None:
        raise _missing(param)
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise wrong_type(param, value, "a string or a list of text parts")
    if not value:
        raise wrong_value(param, value, "a list of at least one text part")
    return [_part(item, f"{param}[{index}]") for index, item in enumerate(value)]


def _part(value: object, param: str) -> dict[str, str]:
    if not isinstance(value, dict):
        raise wrong_type(param, value, 'an object {"type": "text", "text": ...}')
    kind = value.get("type")
    if isinstance(kind, str) and kind in NOT_SERVED_PARTS:
        raise _not_served(f"{param}.type {kind}", f"{param}.type")
    if kind != "text":
        raise wrong_value(f"{param}.type", kind, '"text"')
    unknown = value.keys() - {"type", "text"}
    if unknown:
        message = f"{param} holds unknown fields besides type and text: {shown(min(unknown))}."
        raise QuireError(ErrorCode.UNKNOWN_PARAMETER, message, param=param)
    return {"type": "text", "text": _text(value.get("text"), f"{param}.text")}


def _text(value: Any, param: str) -> str:
    if not isinstance(value, str):
        raise wrong_type(param, value, "a string")
    return value


def _missing(param: str) -> QuireError:
    return QuireError(ErrorCode.MISSING_PARAMETER, f"{param} is missing.", param=param)


def _not_served(what: str, param: str | None = None) -> QuireError:
    message = f"{what} is not served yet. Send text messages without it."
    return QuireError(ErrorCode.UNSUPPORTED_PARAMETER, message, param=param or what)
