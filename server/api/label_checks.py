"""Values that change nothing: checked for their type, bounded, and served as a client's labels."""

from __future__ import annotations

from dataclasses import dataclass

from server.api.errors import wrong_type, wrong_value
from server.api.state import ModelCard


@dataclass(frozen=True, slots=True)
class Label:
    """A string of at most so many characters."""

    most: int

    def __call__(self, value: object, param: str, model: ModelCard) -> str:
        if not isinstance(value, str):
            raise wrong_type(param, value, "a string")
        if len(value) > self.most:
            raise wrong_value(
                param, value, f"a string of at most {self.most} characters (it has {len(value)})"
            )
        return value


@dataclass(frozen=True, slots=True)
class Labels:
    """An object of at most ``most`` strings by name."""

    most: int
    key: Label
    label: Label

    def __call__(self, value: object, param: str, model: ModelCard) -> dict[str, str]:
        if not isinstance(value, dict):
            raise wrong_type(param, value, "an object of strings")
        if len(value) > self.most:
            raise wrong_value(param, value, f"an object of at most {self.most} strings")
        return {
            self.key(name, param, model): self.label(item, f"{param}.{name}", model)
            for name, item in value.items()
        }


@dataclass(frozen=True, slots=True)
class SmallObject:
    """An object or a list of at most ``most`` entries, whatever they are: it is not looked into."""

    most: int

    def __call__(self, value: object, param: str, model: ModelCard) -> object:
        if not isinstance(value, dict | list):
            raise wrong_type(param, value, "an object or a list")
        if len(value) > self.most:
            raise wrong_value(param, value, f"of at most {self.most} entries")
        return value
