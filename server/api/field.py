"""What a field of a request is, and how an object of fields is read.

A body, its stream_options, a message and a part of a message are all read here, each by a table of
fields. A value that asks for nothing (null, or one of ``Field.nothing``) is as good as absent; one
that asks for something is served or refused by name; a key that no table holds is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from server.api.errors import joined, shown
from server.api.state import ModelCard
from server.errors import ErrorCode, QuireError

PARAM_CHARACTERS = 200  # of a field's path, as an error repeats it


class Check(Protocol):
    def __call__(self, value: object, param: str, model: ModelCard) -> Any:
        """The value, in the form the server uses. Raises QuireError."""
        ...


@dataclass(frozen=True, slots=True)
class NotServed:
    """The check of a field that is known and whose every value but the neutral ones is refused.
    ``words`` is a sentence that says what is not served."""

    words: str

    def __call__(self, value: object, param: str, model: ModelCard) -> Any:
        raise self.refusal(value, param)

    def refusal(self, value: object, param: str) -> QuireError:
        message = f"{self.words} {param} is {shown(value)}: leave it out."
        return QuireError(ErrorCode.UNSUPPORTED_PARAMETER, message, param=param)


@dataclass(frozen=True, slots=True)
class Field:
    """One field. ``nothing`` are values besides null that ask for nothing: they are as good as
    absent, which gives ``default``."""

    name: str
    check: Check
    default: Any = None
    required: bool = False
    nothing: tuple[Any, ...] = ()

    @property
    def is_served(self) -> bool:
        return not isinstance(self.check, NotServed)

    def asks_for_nothing(self, value: object) -> bool:
        if value is None or not self.nothing:
            return value is None
        return any(_same(value, neutral) for neutral in self.nothing)

    def is_default(self, value: object) -> bool:
        return _same(value, self.default)


def not_served(words: str, **nothing: tuple[Any, ...]) -> tuple[Field, ...]:
    """Fields that one sentence refuses; each is given with the values that ask for nothing."""
    check = NotServed(words)
    return tuple(Field(name, check, nothing=values) for name, values in nothing.items())


class FieldTable:
    """Fields by name, with what of reading them is the same every time: a chat reads a table for
    each of its messages."""

    def __init__(self, fields: Iterable[Field]) -> None:
        self.fields = {field.name: field for field in fields}
        self.served = [field for field in self.fields.values() if field.is_served]
        self.defaults = {field.name: field.default for field in self.served}
        self.required = [field.name for field in self.served if field.required]

    def __contains__(self, name: str) -> bool:
        return name in self.fields

    def __getitem__(self, name: str) -> Field:
        return self.fields[name]

    def read(self, values: Mapping[str, Any], model: ModelCard, where: str = "") -> dict[str, Any]:
        """The checked value, or the default, of every field that is served. ``where`` begins the
        path of a field: "stream_options." or "messages[3].".

        Raises:
            QuireError: a field is unknown, not served, missing, or holds what it may not.
        """
        found = dict(self.defaults)
        for name, value in values.items():
            field = self.fields.get(name)
            if field is None:
                raise self.unknown(name, where)
            if not field.asks_for_nothing(value):
                found[name] = field.check(value, where + name, model)
        for name in self.required:
            if found[name] is None:
                raise missing(where + name)
        return found

    def unknown(self, name: str, where: str = "") -> QuireError:
        """A key that nobody knows: most likely a misspelt one, whose wish must not vanish."""
        known = joined(field.name for field in self.served)
        message = f"The field {where}{shown(name)} is unknown. Known are: {known}."
        path = where + name
        param = path if len(path) <= PARAM_CHARACTERS else None
        return QuireError(ErrorCode.UNKNOWN_PARAMETER, message, param=param)


def missing(param: str) -> QuireError:
    message = f"{param} is missing, and needed."
    return QuireError(ErrorCode.MISSING_PARAMETER, message, param=param)


def _same(one: object, other: object) -> bool:
    """Equal as JSON values: true is not 1, while 1 is 1.0."""
    return isinstance(one, bool) == isinstance(other, bool) and one == other
