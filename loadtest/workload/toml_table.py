"""Reads a TOML table strictly: every key is wanted, every value is of its kind and in its range."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loadtest.errors import ScenarioError


class Table:
    """One table of a scenario file. ``finish`` refuses keys that were not read."""

    def __init__(self, values: Mapping[str, Any], source: str, name: str = "") -> None:
        self._values = dict(values)
        self._source = source
        self._name = name
        self._known: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def error(self, key: str, problem: str) -> ScenarioError:
        return ScenarioError(f"{self._source}: {self._path(key)}: {problem}")

    def number(self, key: str, default: float | None = None, *, low: float, high: float) -> float:
        value = self._take(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(key, f"must be a number, not {value!r}")
        if not low <= value <= high:
            raise self.error(key, f"is {value:g}; allowed is {low:g} to {high:g}")
        return float(value)

    def integer(self, key: str, default: int | None = None, *, low: int, high: int) -> int:
        value = self._take(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(key, f"must be a whole number, not {value!r}")
        if not low <= value <= high:
            raise self.error(key, f"is {value}; allowed is {low} to {high}")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        value = self._take(key, default)
        if not isinstance(value, str):
            raise self.error(key, f"must be a text, not {value!r}")
        return value

    def choice(self, key: str, allowed: tuple[str, ...], default: str | None = None) -> str:
        value = self.text(key, default)
        if value not in allowed:
            raise self.error(key, f'is "{value}"; allowed: {", ".join(allowed)}')
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self._take(key, default)
        if not isinstance(value, bool):
            raise self.error(key, f"must be true or false, not {value!r}")
        return value

    def table(self, key: str) -> Table:
        """A table below this one; an empty one where it is left out."""
        value = self._take(key, {})
        if not isinstance(value, dict):
            raise self.error(key, "must be a table")
        return Table(value, self._source, self._path(key))

    def tables(self, key: str) -> list[Table]:
        """An array of tables."""
        value = self._take(key, [])
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise self.error(key, "must be an array of tables")
        return [
            Table(item, self._source, f"{self._path(key)}[{place}]")
            for place, item in enumerate(value)
        ]

    def raw(self, key: str, default: Any) -> Any:
        """A value that is passed on as it is."""
        return self._take(key, default)

    def finish(self) -> None:
        """Raises ScenarioError for a key that no reader asked for."""
        unknown = sorted(set(self._values) - self._known)
        if unknown:
            known = ", ".join(sorted(self._known))
            raise self.error(unknown[0], f"is not a key here; known: {known}")

    def _take(self, key: str, default: Any) -> Any:
        self._known.add(key)
        if key in self._values:
            return self._values[key]
        if default is None:
            raise self.error(key, "is missing")
        return default

    def _path(self, key: str) -> str:
        return f"{self._name}.{key}" if self._name else key
