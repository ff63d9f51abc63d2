"""The messages of a chat: roles and text. What else a message may hold is a table too.

Clients send the answers of earlier turns back as they got them, with keys that say nothing to the
model: those are served as long as they ask for nothing. Any other key is refused with its path,
since a misspelt tool_calls must not vanish.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from server.api.errors import joined, wrong_type, wrong_value
from server.api.field import Field, FieldTable, NotServed, missing, not_served
from server.api.label_checks import Label, SmallObject
from server.api.state import ModelCard

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
NOT_SERVED_ROLES = ("tool", "function")
NOT_SERVED_PARTS = ("image_url", "input_audio", "file", "video_url", "audio_url", "refusal")

_TOOLS = NotServed("Tools are not served yet.")
_PARTS = NotServed("Only text is served: this kind of part is not, yet.")


@dataclass(frozen=True, slots=True)
class Role:
    """The role as templates know it: a developer message is what older ones call system."""

    def __call__(self, value: object, param: str, model: ModelCard) -> str:
        if not isinstance(value, str):
            raise wrong_type(param, value, "a string")
        if value in NOT_SERVED_ROLES:
            raise _TOOLS.refusal(value, param)
        if value not in ROLES:
            raise wrong_value(param, value, f"one of {joined(ROLES)}")
        return ROLES[value]


@dataclass(frozen=True, slots=True)
class PlainText:
    """A string of any length: the body's size bounds it."""

    def __call__(self, value: object, param: str, model: ModelCard) -> str:
        if not isinstance(value, str):
            raise wrong_type(param, value, "a string")
        return value


@dataclass(frozen=True, slots=True)
class PartType:
    def __call__(self, value: object, param: str, model: ModelCard) -> str:
        if isinstance(value, str) and value in NOT_SERVED_PARTS:
            raise _PARTS.refusal(value, param)
        if value != "text":
            raise wrong_value(param, value, '"text"')
        return "text"


CACHE_CONTROL = Field("cache_control", SmallObject(8))  # where a client would cut the prompt cache

PART = FieldTable(
    (
        Field("type", PartType(), required=True),
        Field("text", PlainText(), required=True),
        CACHE_CONTROL,
        Field("annotations", SmallObject(64)),
    )
)


@dataclass(frozen=True, slots=True)
class Content:
    """Text, or a list of text parts: it stays in its form, for the template to decide about."""

    def __call__(self, value: object, param: str, model: ModelCard) -> str | list[dict[str, str]]:
        if isinstance(value, str):
            return value
        if not isinstance(value, list):
            raise wrong_type(param, value, "a string or a list of text parts")
        if not value:
            raise wrong_value(param, value, "a list of at least one text part")
        return [self._part(item, f"{param}[{at}]", model) for at, item in enumerate(value)]

    def _part(self, value: object, param: str, model: ModelCard) -> dict[str, str]:
        if not isinstance(value, dict):
            raise wrong_type(param, value, 'an object {"type": "text", "text": ...}')
        if value.get("type") != "text":  # of another kind of part every key would be unknown
            PART["type"].check(value.get("type"), f"{param}.type", model)
        found = PART.read(value, model, f"{param}.")
        return {"type": "text", "text": found["text"]}


MESSAGE = FieldTable(
    (
        Field("role", Role(), required=True),
        Field("content", Content()),
        Field("name", PlainText()),
        Field("id", Label(256)),
        Field("status", Label(64)),
        Field("annotations", SmallObject(64)),
        CACHE_CONTROL,
        *not_served(
            "Tools are not served yet.", tool_calls=([],), tool_call_id=("",), function_call=({},)
        ),
        *not_served("Only text is served.", audio=({},)),
        *not_served("Refusals of earlier answers are not served yet.", refusal=("",)),
        *not_served(
            "The reasoning of earlier answers is not served yet.",
            reasoning_content=("",),
            reasoning=("",),
        ),
    )
)


@dataclass(frozen=True, slots=True)
class Messages:
    """A list of messages, given to the template as {"role", "content"[, "name"]}."""

    most: int

    def __call__(self, value: object, param: str, model: ModelCard) -> tuple[dict[str, Any], ...]:
        if not isinstance(value, list):
            raise wrong_type(param, value, "a list of messages")
        if not 1 <= len(value) <= self.most:
            raise wrong_value(param, value, f"a list of 1 to {self.most} messages")
        return tuple(_message(item, f"{param}[{at}]", model) for at, item in enumerate(value))


def _message(value: object, param: str, model: ModelCard) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise wrong_type(param, value, "an object with role and content")
    found = MESSAGE.read(value, model, f"{param}.")
    if found["content"] is None:
        if found["role"] != "assistant":
            raise missing(f"{param}.content")
        found["content"] = (
            ""  # of an answer that held nothing but what is refused above, or nothing
        )
    message = {"role": found["role"], "content": found["content"]}
    if found["name"] is not None:
        message["name"] = found["name"]
    return message
