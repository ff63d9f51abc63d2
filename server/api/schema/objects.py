"""RequestObject: what a body, its stream_options, a message and a part of a message have in common.

Null is absence, and so is a value that asks for nothing (the field's default, an empty or an "off"
value); a field that is known and not served is refused where it asks for something; any other key
is refused, since a misspelt name is a wish that must not vanish. What is left is pydantic's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    GetJsonSchemaHandler,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

from server.api.schema.faults import NOT_SERVED, UNKNOWN, WRONG_TYPE, fault, only_missing


class Nothing:
    """Metadata of a served field: values besides null that ask for nothing."""

    def __init__(self, *values: Any) -> None:
        self.values = values


@dataclass(frozen=True, slots=True)
class Key:
    """What an object knows of one of its keys. ``refusal`` is a sentence that says what is not
    served, of a field whose every other value is refused; empty for a field that is served."""

    nothing: tuple[Any, ...] = ()
    refusal: str = ""

    def asks_for_nothing(self, value: object) -> bool:
        if value is None or not self.nothing:
            return value is None
        return any(is_same(value, neutral) for neutral in self.nothing)

    def describe(self) -> dict[str, Any]:
        """The JSON Schema of what is as good as absent."""
        return {"enum": [*self.nothing, None]} if self.nothing else {"type": "null"}


def not_served(words: str, **nothing: tuple[Any, ...]) -> dict[str, Key]:
    """Fields that one sentence refuses; each is given with the values that ask for nothing."""
    return {name: Key(values, words) for name, values in nothing.items()}


class RequestObject(BaseModel):
    """Base of every object that a request consists of. A subclass may name in ``refused`` the
    fields that it knows and does not serve.

    The context of a validation is the ModelCard. Validating raises pydantic's ValidationError,
    whose faults server.api.schema.faults puts in words.
    """

    # Only the requests themselves are ever validated: they build their parts.
    model_config = ConfigDict(strict=True, extra="forbid", defer_build=True)

    wanted: ClassVar[str] = "an object"
    refused: ClassVar[Mapping[str, Key]] = {}
    keys: ClassVar[Mapping[str, Key]] = {}
    served: ClassVar[Iterable[str]] = ()

    @classmethod
    def __pydantic_init_subclass__(cls, **given: Any) -> None:
        super().__pydantic_init_subclass__(**given)
        own = {name: Key(_nothing(field.metadata)) for name, field in cls.model_fields.items()}
        cls.served = tuple(own)
        cls.keys = {**cls.refused, **own}

    @model_validator(mode="wrap")
    @classmethod
    def _without_nothing(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Hands on the keys that ask for something, up to the first that is refused: what comes
        before that one in the object is told before it."""
        if not isinstance(values, dict):
            raise fault(WRONG_TYPE, cls.wanted)
        asked: dict[str, Any] = {}
        refusal: PydanticCustomError | None = None
        keys = cls.keys
        for name, value in values.items():
            key = keys.get(name)
            if key is None:
                refusal = fault(UNKNOWN, "", name=name, known=cls.served)
                break
            if key.asks_for_nothing(value):
                continue
            if key.refusal:
                refusal = fault(NOT_SERVED, key.refusal, key=name, value=value)
                break
            asked[name] = value
        if refusal is None:
            return handler(asked)
        try:
            handler(asked)
        except ValidationError as error:
            if not only_missing(error):
                raise
        raise refusal

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Adds what is as good as absent to every field, and the fields that are not served."""
        reference = handler(core_schema)
        schema = handler.resolve_ref_schema(reference)
        fields, required = schema["properties"], schema.get("required", ())
        for name in fields.keys() - set(required):
            fields[name] = _or_nothing(fields[name], cls.keys[name])
        for name, key in cls.refused.items():
            fields[name] = {"description": key.refusal, **key.describe()}
        return reference


def is_same(one: object, other: object) -> bool:
    """Equal as JSON values: true is not 1, while 1 is 1.0."""
    return isinstance(one, bool) == isinstance(other, bool) and one == other


def _nothing(metadata: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(value for one in metadata if isinstance(one, Nothing) for value in one.values)


def _or_nothing(served: dict[str, Any], key: Key) -> dict[str, Any]:
    kept = ("description", "examples")
    outer: dict[str, Any] = {name: served.pop(name) for name in kept if name in served}
    served.pop("title", None)
    served.pop("default", None)
    choices = served.get("anyOf", [served])
    choices = [choice for choice in choices if choice != {"type": "null"}]
    return {"anyOf": [*choices, key.describe()], **outer}
