"""Kinds of field: each says what a value must be, checks one, and describes itself.

A bound is a number, or the name of a ModelCard attribute that holds it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from server.api.errors import wrong_type, wrong_value
from server.api.field import FieldTable
from server.api.state import ModelCard
from server.engine.sampling_limits import Range
from server.errors import QuireError

Bound = int | float | str


def resolve(bound: Bound, model: ModelCard) -> int | float:
    number: int | float = getattr(model, bound) if isinstance(bound, str) else bound
    return number


@dataclass(frozen=True, slots=True)
class Integer:
    low: Bound
    high: Bound
    also: tuple[int, ...] = ()  # single values outside of the range

    def __call__(self, value: object, param: str, model: ModelCard) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise wrong_type(param, value, "an integer")
        low, high = resolve(self.low, model), resolve(self.high, model)
        if not low <= value <= high and value not in self.also:
            others = "".join(f"{other} or " for other in self.also)
            raise wrong_value(param, value, f"{others}an integer from {low} to {high}")
        return value


@dataclass(frozen=True, slots=True)
class Number:
    range: Range

    def __call__(self, value: object, param: str, model: ModelCard) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise wrong_type(param, value, "a number")
        if value not in self.range:
            raise wrong_value(param, value, str(self.range))
        return float(value)


@dataclass(frozen=True, slots=True)
class Boolean:
    def __call__(self, value: object, param: str, model: ModelCard) -> bool:
        if not isinstance(value, bool):
            raise wrong_type(param, value, "true or false")
        return value


@dataclass(frozen=True, slots=True)
class Text:
    least: int
    most: int  # characters

    def __call__(self, value: object, param: str, model: ModelCard) -> str:
        if not isinstance(value, str):
            raise wrong_type(param, value, "a string")
        if not self.least <= len(value) <= self.most:
            wanted = f"a string of {self.least} to {self.most} characters"
            raise wrong_value(param, value, f"{wanted} (it has {len(value)})")
        return value


@dataclass(frozen=True, slots=True)
class Stops:
    """A string or a list of strings."""

    most: int
    text: Text

    def __call__(self, value: object, param: str, model: ModelCard) -> tuple[str, ...]:
        values = value if isinstance(value, list) else [value]
        if not isinstance(value, str | list):
            raise wrong_type(param, value, "a string or a list of strings")
        if len(values) > self.most:
            raise wrong_value(param, value, f"at most {self.most} strings")
        found = [self.text(item, _item(param, value, i), model) for i, item in enumerate(values)]
        return tuple(dict.fromkeys(found))


@dataclass(frozen=True, slots=True)
class TokenIds:
    """A list of token ids within the vocabulary."""

    least: int
    most: Bound

    def __call__(self, value: object, param: str, model: ModelCard) -> tuple[int, ...]:
        if not isinstance(value, list):
            raise wrong_type(param, value, "a list of token ids")
        most = resolve(self.most, model)
        if not self.least <= len(value) <= most:
            raise wrong_value(param, value, f"a list of {self.least} to {most} token ids")
        limit = model.vocab_size
        for index, id in enumerate(value):
            if type(id) is not int or not 0 <= id < limit:
                raise self._wrong_id(f"{param}[{index}]", id, model)
        return tuple(value)

    def _wrong_id(self, param: str, id: object, model: ModelCard) -> QuireError:
        if isinstance(id, bool) or not isinstance(id, int):
            return wrong_type(param, id, "a token id (an integer)")
        return wrong_value(param, id, f"a token id from 0 to {model.vocab_size - 1}")


@dataclass(frozen=True, slots=True)
class Biases:
    """An object of token id (as a decimal string) to bias."""

    most: int
    bias: Number

    def __call__(
        self, value: object, param: str, model: ModelCard
    ) -> tuple[tuple[int, float], ...]:
        if not isinstance(value, dict):
            raise wrong_type(param, value, "an object of token id to bias")
        if len(value) > self.most:
            raise wrong_value(param, value, f"an object of at most {self.most} biases")
        found: dict[int, float] = {}
        for key, bias in value.items():
            id = self._token_id(key, param, model)
            if id in found:
                raise wrong_value(param, key, "an object that names each token id once")
            found[id] = self.bias(bias, f"{param}[{key}]", model)
        return tuple(found.items())

    def _token_id(self, key: str, param: str, model: ModelCard) -> int:
        digits = key.isascii() and key.isdigit() and len(key) <= 10
        if not digits or int(key) >= model.vocab_size:
            wanted = f"keyed by token ids from 0 to {model.vocab_size - 1}"
            raise wrong_value(param, key, wanted)
        return int(key)


@dataclass(frozen=True, slots=True)
class Options:
    """An object with fields of its own."""

    table: FieldTable

    def __call__(self, value: object, param: str, model: ModelCard) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise wrong_type(param, value, "an object")
        return self.table.read(value, model, f"{param}.")


@dataclass(frozen=True, slots=True)
class Prompt:
    """Text, a list of texts, a list of token ids, or a list of such lists. Gives a tuple of
    prompts, each text or a tuple of ids."""

    text: Text
    ids: TokenIds

    def __call__(
        self, value: object, param: str, model: ModelCard
    ) -> tuple[str | tuple[int, ...], ...]:
        if isinstance(value, str):
            return (self.text(value, param, model),)
        if not isinstance(value, list):
            wanted = "a string, a list of strings, a list of token ids or a list of such lists"
            raise wrong_type(param, value, wanted)
        if not value:
            raise wrong_value(param, value, "a prompt that is not empty")
        if isinstance(value[0], int) and not isinstance(value[0], bool):
            return (self.ids(value, param, model),)
        if len(value) > model.max_prompts:
            raise wrong_value(param, value, f"at most {model.max_prompts} prompts")
        one = self.text if isinstance(value[0], str) else self.ids
        return tuple(one(item, f"{param}[{index}]", model) for index, item in enumerate(value))


def _item(param: str, value: object, index: int) -> str:
    return f"{param}[{index}]" if isinstance(value, list) else param
