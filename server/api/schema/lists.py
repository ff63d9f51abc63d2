"""Kinds of fields that hold several values: ids, strings, biases, labels, prompts.

Their values are read one after another, and the first that is wrong ends it: a list of a hundred
thousand wrong ids is one fault, found in the time of one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from server.api.schema.faults import WRONG_TYPE, WRONG_VALUE, fault
from server.api.schema.kinds import Bound, Kind, Number, Text, bounds, resolve
from server.api.state import ModelCard

MAX_KEY_DIGITS = 10


class _Several(Kind):
    """A list or an object whose items ``read`` looks at."""

    container: type | tuple[type, ...]

    def typed(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.is_instance_schema(self.container)


@dataclass(frozen=True, slots=True)
class Stops(_Several):
    """A string or a list of strings. Gives each once."""

    most: int
    text: Text
    type_words = "a string or a list of strings"
    container = (str, list)

    def read(self, value: Any, model: ModelCard) -> tuple[str, ...]:
        if isinstance(value, str):
            return (self.text.text(value, ""),)
        if len(value) > self.most:
            raise fault(WRONG_VALUE, f"at most {self.most} strings")
        found = [self.text.text(item, f"[{at}]") for at, item in enumerate(value)]
        return tuple(dict.fromkeys(found))

    def describe(self) -> dict[str, Any]:
        text = self.text.describe()
        return {"anyOf": [text, {"type": "array", "items": text, "maxItems": self.most}]}


@dataclass(frozen=True, slots=True)
class TokenIds(_Several):
    """A list of token ids within the vocabulary."""

    least: int
    most: Bound
    type_words = "a list of token ids"
    container = list

    def read(self, value: Any, model: ModelCard) -> tuple[int, ...]:
        return self.ids(value, model, "")

    def ids(self, value: object, model: ModelCard, at: str) -> tuple[int, ...]:
        if not isinstance(value, list):
            raise fault(WRONG_TYPE, self.type_words, at=at, value=value)
        most = resolve(self.most, model)
        if not self.least <= len(value) <= most:
            wanted = f"a list of {self.least} to {most} token ids"
            raise fault(WRONG_VALUE, wanted, at=at, value=value)
        limit = model.vocab_size
        for index, id in enumerate(value):
            if type(id) is not int:
                wanted = "a token id (an integer)"
                raise fault(WRONG_TYPE, wanted, at=f"{at}[{index}]", value=id)
            if not 0 <= id < limit:
                wanted = f"a token id from 0 to {limit - 1}"
                raise fault(WRONG_VALUE, wanted, at=f"{at}[{index}]", value=id)
        return tuple(value)

    def describe(self) -> dict[str, Any]:
        id = {"type": "integer", **bounds(minimum=0, maximum="last_token_id")}
        return {
            "type": "array",
            "items": id,
            "minItems": self.least,
            **bounds(maxItems=self.most),
        }


@dataclass(frozen=True, slots=True)
class Biases(_Several):
    """An object of token id (as a decimal string) to bias. Gives pairs."""

    most: int
    bias: Number
    type_words = "an object of token id to bias"
    container = dict

    def read(self, value: Any, model: ModelCard) -> tuple[tuple[int, float], ...]:
        if len(value) > self.most:
            raise fault(WRONG_VALUE, f"an object of at most {self.most} biases")
        found: dict[int, float] = {}
        for key, bias in value.items():
            id = self._token_id(key, model)
            if id in found:
                raise fault(WRONG_VALUE, "an object that names each token id once", value=key)
            if isinstance(bias, bool) or not isinstance(bias, int | float):
                raise fault(WRONG_TYPE, self.bias.type_words, at=f"[{key}]", value=bias)
            if bias not in self.bias.range:
                raise fault(WRONG_VALUE, str(self.bias.range), at=f"[{key}]", value=bias)
            found[id] = float(bias)
        return tuple(found.items())

    def _token_id(self, key: str, model: ModelCard) -> int:
        digits = key.isascii() and key.isdigit() and len(key) <= MAX_KEY_DIGITS
        if not digits or int(key) >= model.vocab_size:
            wanted = f"keyed by token ids from 0 to {model.vocab_size - 1}"
            raise fault(WRONG_VALUE, wanted, value=key)
        return int(key)

    def describe(self) -> dict[str, Any]:
        return {
            "type": "object",
            "propertyNames": {"maxLength": MAX_KEY_DIGITS, "x-decimals": "last_token_id"},
            "additionalProperties": self.bias.describe(),
            "maxProperties": self.most,
        }


@dataclass(frozen=True, slots=True)
class Labels(_Several):
    """An object of at most ``most`` strings by name."""

    most: int
    key: Text
    label: Text
    type_words = "an object of strings"
    container = dict

    def read(self, value: Any, model: ModelCard) -> dict[str, str]:
        if len(value) > self.most:
            raise fault(WRONG_VALUE, f"an object of at most {self.most} strings")
        for name, item in value.items():
            self.key.text(name, "")
            self.label.text(item, f".{name}")
        return dict(value)

    def describe(self) -> dict[str, Any]:
        return {
            "type": "object",
            "propertyNames": {"maxLength": self.key.most},
            "additionalProperties": self.label.describe(),
            "maxProperties": self.most,
        }


@dataclass(frozen=True, slots=True)
class Prompts(_Several):
    """Text, a list of texts, a list of token ids, or a list of such lists. Gives a tuple of
    prompts, each text or a tuple of ids."""

    text: Text
    ids: TokenIds
    type_words = "a string, a list of strings, a list of token ids or a list of such lists"
    container = (str, list)

    def read(self, value: Any, model: ModelCard) -> tuple[str | tuple[int, ...], ...]:
        if isinstance(value, str):
            return (self.text.text(value, ""),)
        if not value:
            raise fault(WRONG_VALUE, "a prompt that is not empty")
        if isinstance(value[0], int) and not isinstance(value[0], bool):
            return (self.ids.ids(value, model, ""),)
        if len(value) > model.max_prompts:
            raise fault(WRONG_VALUE, f"at most {model.max_prompts} prompts")
        if isinstance(value[0], str):
            return tuple(self.text.text(item, f"[{at}]") for at, item in enumerate(value))
        return tuple(self.ids.ids(item, model, f"[{at}]") for at, item in enumerate(value))

    def describe(self) -> dict[str, Any]:
        text, ids = self.text.describe(), self.ids.describe()
        many = {"type": "array", "minItems": 1, **bounds(maxItems="max_prompts")}
        return {"anyOf": [text, {**many, "items": text}, ids, {**many, "items": ids}]}
