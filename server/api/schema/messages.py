"""The messages of a chat: roles and text.

Clients send the answers of earlier turns back as they got them, with keys that say nothing to the
model: those are served as long as they ask for nothing. Any other key is refused with its path,
since a misspelt tool_calls must not vanish.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from server.api.errors import joined
from server.api.schema.faults import MISSING, NOT_SERVED, WRONG_TYPE, WRONG_VALUE, fault, tag
from server.api.schema.kinds import Entries, Kind, Text
from server.api.schema.objects import Key, RequestObject, not_served
from server.api.state import ModelCard

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
NOT_SERVED_ROLES = ("tool", "function")
NOT_SERVED_PARTS = ("image_url", "input_audio", "file", "video_url", "audio_url", "refusal")
MAX_MESSAGES = 4096

_NO_TOOLS = "Tools are not served yet."
_NO_PARTS = "Only text is served: this kind of part is not, yet."
CacheControl = Annotated[  # where a client would cut the prompt cache
    dict[str, Any] | list[Any] | None, Entries(8), Field(description="Changes nothing.")
]
Annotations = Annotated[
    dict[str, Any] | list[Any] | None, Entries(64), Field(description="Changes nothing.")
]


@dataclass(frozen=True, slots=True)
class Role(Kind):
    """The role as templates know it: a developer message is what older ones call system."""

    type_words = "a string"

    def read(self, value: Any, model: ModelCard) -> str:
        if value in NOT_SERVED_ROLES:
            raise fault(NOT_SERVED, _NO_TOOLS)
        if value not in ROLES:
            raise fault(WRONG_VALUE, f"one of {joined(ROLES)}")
        return ROLES[value]

    def describe(self) -> dict[str, Any]:
        return {"type": "string", "enum": list(ROLES)}


@dataclass(frozen=True, slots=True)
class PartType(Kind):
    type_words = '"text"'

    def typed(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.any_schema()  # refused before any other key of the part: see TextPart

    def read(self, value: Any, model: ModelCard) -> str:
        return str(value)

    def describe(self) -> dict[str, Any]:
        return {"const": "text"}


class TextPart(RequestObject):
    wanted = 'an object {"type": "text", "text": ...}'

    type: Annotated[str, PartType()]
    text: Annotated[str, Text()]
    cache_control: CacheControl = None
    annotations: Annotations = None


def _known_part(value: Any) -> Any:
    """Refuses another kind of part by its kind: every other key of it would be unknown."""
    if isinstance(value, dict):
        kind = value.get("type")
        if isinstance(kind, str) and kind in NOT_SERVED_PARTS:
            raise fault(NOT_SERVED, _NO_PARTS, key="type", value=kind)
        if kind != "text":
            raise fault(WRONG_VALUE, '"text"', key="type", value=kind)
    return value


def _plain_part(part: TextPart) -> dict[str, str]:
    return {"type": "text", "text": part.text}


_TEXT, _PARTS = tag("text"), tag("parts")


class Content:
    """Metadata of a message's content: text, or a list of text parts. It stays in its form, for
    the template to decide about."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        part = core_schema.no_info_after_validator_function(
            _plain_part,
            core_schema.no_info_before_validator_function(
                _known_part, handler.generate_schema(TextPart)
            ),
        )
        parts = core_schema.no_info_before_validator_function(
            _some, core_schema.list_schema(part, fail_fast=True)
        )
        return core_schema.tagged_union_schema(
            {_TEXT: core_schema.str_schema(strict=True), _PARTS: parts},
            _form,
            custom_error_type=WRONG_TYPE,
            custom_error_message="{words}",
            custom_error_context={"words": "a string or a list of text parts"},
        )

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        text, parts = handler(schema)["oneOf"]
        return {"anyOf": [text, {**parts, "minItems": 1}]}


def _form(value: object) -> str | None:
    return _TEXT if isinstance(value, str) else _PARTS if isinstance(value, list) else None


def _some(value: Any) -> Any:
    if not value:
        raise fault(WRONG_VALUE, "a list of at least one text part")
    return value


class Message(RequestObject):
    wanted = "an object with role and content"
    refused: ClassVar[Mapping[str, Key]] = {
        **not_served(_NO_TOOLS, tool_calls=([],), tool_call_id=("",), function_call=({},)),
        **not_served("Only text is served.", audio=({},)),
        **not_served("Refusals of earlier answers are not served yet.", refusal=("",)),
        **not_served(
            "The reasoning of earlier answers is not served yet.",
            reasoning_content=("",),
            reasoning=("",),
        ),
    }

    role: Annotated[str, Role(), Field(description="A developer message is a system message.")]
    content: Annotated[
        str | list[dict[str, str]] | None,
        Content(),
        Field(description="Text, or a list of text parts. An assistant may have said nothing."),
    ] = None
    name: Annotated[str | None, Text(), Field(description="For the model's template.")] = None
    id: Annotated[str | None, Text(0, 256), Field(description="Changes nothing.")] = None
    status: Annotated[str | None, Text(0, 64), Field(description="Changes nothing.")] = None
    annotations: Annotations = None
    cache_control: CacheControl = None


def _plain_message(message: Message) -> dict[str, Any]:
    """As templates read it: {"role", "content"[, "name"]}."""
    content = message.content
    if content is None:
        if message.role != "assistant":
            raise fault(MISSING, "", key="content")
        content = ""  # of an answer that held nothing but what is refused above, or nothing
    plain = {"role": message.role, "content": content}
    if message.name is not None:
        plain["name"] = message.name
    return plain


class Messages:
    """Metadata of a conversation, read as a list of what the template is given."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        message = core_schema.no_info_after_validator_function(
            _plain_message, handler.generate_schema(Message)
        )
        return core_schema.no_info_before_validator_function(
            _counted, core_schema.list_schema(message, fail_fast=True)
        )

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {**handler(schema), "minItems": 1, "maxItems": MAX_MESSAGES}


def _counted(value: Any) -> Any:
    if not isinstance(value, list):
        raise fault(WRONG_TYPE, "a list of messages")
    if not 1 <= len(value) <= MAX_MESSAGES:
        raise fault(WRONG_VALUE, f"a list of 1 to {MAX_MESSAGES} messages")
    return value
