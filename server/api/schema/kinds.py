"""Kinds of single values, as metadata of a field's type: ``Annotated[int, Whole(0, 5)]``.

pydantic checks the type, strictly; the kind checks the bound, has the words for both, and describes
itself in the OpenAPI document. A bound is a number, or the name of a ModelCard attribute that holds
it: such a bound is read when a value is validated, from the card in the validation's context, and
stands in a description as ``x-maximum`` until server.api.routes.openapi resolves it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from server.api.schema.faults import WRONG_TYPE, WRONG_VALUE, fault
from server.api.state import ModelCard
from server.engine.request import Range

Bound = int | str


def resolve(bound: Bound, model: ModelCard) -> int:
    number: int = getattr(model, bound) if isinstance(bound, str) else bound
    return number


def bounds(**given: Bound) -> dict[str, Any]:
    """Keywords of JSON Schema, marked to be resolved. FastAPI makes floats of plain ones, which
    2^63 - 1 does not survive."""
    return {f"x-{key}": value for key, value in given.items()}


class Kind(ABC):
    """Metadata of a type, which pydantic asks for the type's validator and description."""

    type_words: str  # what the value must be at all

    @abstractmethod
    def read(self, value: Any, model: ModelCard) -> Any:
        """The value in the form that the server uses. Raises what ``fault`` makes."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """The JSON Schema of what is served."""

    def typed(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """The validator of the type alone."""
        return handler(source)

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        typed = core_schema.custom_error_schema(
            self.typed(source, handler),
            WRONG_TYPE,
            custom_error_message="{words}",
            custom_error_context={"words": self.type_words},
        )
        return core_schema.with_info_after_validator_function(reader(self.read), typed)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return self.describe()


def reader(read: Callable[[Any, ModelCard], Any]) -> Callable[[Any, ValidationInfo], Any]:
    """``read`` as pydantic calls it: the card is the context of the validation."""

    def with_card(value: Any, info: ValidationInfo) -> Any:
        return read(value, cast(ModelCard, info.context))  # always given

    return with_card


@dataclass(frozen=True, slots=True)
class Whole(Kind):
    """An integer from ``low`` to ``high``, or one of ``also``."""

    low: int
    high: Bound
    also: tuple[int, ...] = ()
    type_words = "an integer"

    def read(self, value: Any, model: ModelCard) -> int:
        high = resolve(self.high, model)
        if not self.low <= value <= high and value not in self.also:
            others = "".join(f"{other} or " for other in self.also)
            raise fault(WRONG_VALUE, f"{others}an integer from {self.low} to {high}")
        return int(value)

    def describe(self) -> dict[str, Any]:
        served = {"type": "integer", **bounds(minimum=self.low, maximum=self.high)}
        if not self.also:
            return served
        return {"anyOf": [served, {"enum": list(self.also)}]}


@dataclass(frozen=True, slots=True)
class Number(Kind):
    range: Range
    type_words = "a number"

    def typed(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """An integer too, which may be larger than any float: that is a matter of its range."""
        return core_schema.union_schema(
            [core_schema.float_schema(strict=True), core_schema.int_schema(strict=True)]
        )

    def read(self, value: Any, model: ModelCard) -> float:
        if value not in self.range:
            raise fault(WRONG_VALUE, str(self.range))
        return float(value)

    def describe(self) -> dict[str, Any]:
        least = "exclusiveMinimum" if self.range.above_low else "minimum"
        return {"type": "number", least: self.range.low, "maximum": self.range.high}


@dataclass(frozen=True, slots=True)
class Truth(Kind):
    type_words = "true or false"

    def read(self, value: Any, model: ModelCard) -> bool:
        return bool(value)

    def describe(self) -> dict[str, Any]:
        return {"type": "boolean"}


@dataclass(frozen=True, slots=True)
class Text(Kind):
    """A string of ``least`` to ``most`` characters; without ``most`` the body's size bounds it."""

    least: int = 0
    most: int | None = None
    type_words = "a string"

    def read(self, value: Any, model: ModelCard) -> str:
        return self.text(value, "")

    def text(self, value: object, at: str) -> str:
        """The same of a value deeper than what pydantic validates, at the path ``at``."""
        if not isinstance(value, str):
            raise fault(WRONG_TYPE, self.type_words, at=at, value=value)
        size = len(value)
        if size < self.least or (self.most is not None and size > self.most):
            wanted = f"{self.least} to {self.most}" if self.least else f"at most {self.most}"
            words = f"a string of {wanted} characters (it has {size})"
            raise fault(WRONG_VALUE, words, at=at, value=value)
        return value

    def describe(self) -> dict[str, Any]:
        served: dict[str, Any] = {"type": "string"}
        if self.least:
            served["minLength"] = self.least
        if self.most is not None:
            served["maxLength"] = self.most
        return served


@dataclass(frozen=True, slots=True)
class ModelName(Text):
    """The name of the one model that is served. Another is refused when all else is right."""

    def describe(self) -> dict[str, Any]:
        return {"type": "string", "x-const": "name"}


@dataclass(frozen=True, slots=True)
class Entries(Kind):
    """An object or a list of at most ``most`` entries, whatever they are: it is not looked into."""

    most: int
    type_words = "an object or a list"

    def typed(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.is_instance_schema((dict, list))

    def read(self, value: Any, model: ModelCard) -> object:
        if len(value) > self.most:
            raise fault(WRONG_VALUE, f"of at most {self.most} entries")
        return value

    def describe(self) -> dict[str, Any]:
        return {
            "anyOf": [
                {"type": "object", "maxProperties": self.most},
                {"type": "array", "maxItems": self.most},
            ]
        }
