"""Reads config.json key by key: typed, bounded, and nothing left over unseen.

Every key falls in one of four classes:

1. read by the family: checked for type and range;
2. harmless: listed in weights.config.keys or by the family, or private (``_...`` or
   ``transformers...``);
3. neutral: null, false, an empty string, list or object, which switch a feature off;
4. unknown. No list can hold every key that some fork gives a meaning, so the name decides: a key
   with a word of arithmetic in it (ARITHMETIC_WORDS) is refused by name, because a model that is
   subtly wrong is worse than one that does not start. The others are handed back for the log.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, TypeVar

from weights.config.keys import ARITHMETIC_WORDS, HARMLESS_KEYS
from weights.errors import CheckpointError
from weights.formats import FORMATS, from_torch_name
from weights.strict_json import shown

CONFIG_FILE = "config.json"
MAX_SIZE = 1 << 26  # no published width, vocabulary or context comes near it
MAX_LAYERS = 1 << 12  # nor near this many: the deepest trained have a thousand

_Choice = TypeVar("_Choice")


class ConfigReader:
    """A config.json object and the record of which keys were read.

    Every method raises CheckpointError naming the key. ``where`` prefixes a nested object's keys;
    ``file`` is another file of such facts, for messages.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        architecture: str,
        where: str = "",
        file: str = CONFIG_FILE,
    ) -> None:
        self._config = config
        self._architecture = architecture
        self._where = where
        self._file = file
        self._read: set[str] = set()

    @property
    def architecture(self) -> str:
        return self._architecture

    @property
    def keys_read(self) -> frozenset[str]:
        """The keys that were asked for so far, whether they are there or not."""
        return frozenset(self._read)

    def __contains__(self, key: str) -> bool:
        """True where the key is present and not null."""
        return self._config.get(key) is not None

    def is_null(self, key: str) -> bool:
        """True where the key is present and null."""
        return key in self._config and self._config[key] is None

    def raw(self, key: str) -> Any:
        """The value as it stands, None where it is absent; counts as read."""
        self._read.add(key)
        return self._config.get(key)

    def rest(self, without: frozenset[str]) -> dict[str, Any]:
        """Every fact but those ``without``; all count as read."""
        self._read |= self._config.keys()
        return {key: value for key, value in self._config.items() if key not in without}

    def error(self, key: str, problem: str) -> CheckpointError:
        return CheckpointError(f"{self._file}: {self._where}{key} {problem}")

    def integer(
        self, key: str, default: int | None = None, *, low: int = 1, high: int = MAX_SIZE
    ) -> int:
        """A whole number in [low, high]. Without a default the key must be there."""
        value = self._present(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(key, f"must be a whole number, not {shown(value)}")
        if not low <= value <= high:
            raise self.error(key, f"is {shown(value)}; it must lie in {low}..{high}")
        return value

    def number(
        self, key: str, default: float | None = None, *, above: float = 0.0, high: float = 1e12
    ) -> float:
        """A finite number in (above, high]. Without a default the key must be there."""
        value = self._present(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(key, f"must be a number, not {shown(value)}")
        # Compared before the conversion: float() of an enormous integer overflows.
        if not (above < value <= high) or (isinstance(value, float) and not math.isfinite(value)):
            raise self.error(
                key, f"is {shown(value)}; it must be above {above:g}, at most {high:g}"
            )
        return float(value)

    def cap(self, key: str, default: float | None) -> float | None:
        """A soft cap: a number above 0, or None where the key is null or, without a default,
        absent."""
        if self.is_null(key) or (key not in self and default is None):
            self._read.add(key)
            return None
        return self.number(key, default)

    def numbers(self, key: str, count: int) -> tuple[float, ...]:
        """A list of ``count`` finite numbers above 0."""
        value = self.raw(key)
        if not isinstance(value, list) or len(value) != count:
            raise self.error(key, f"must be a list of {count} numbers")
        for number in value:
            real = isinstance(number, int | float) and not isinstance(number, bool)
            if not real or not 0 < number <= 1e12:
                raise self.error(key, f"has {shown(number)}; its numbers must be above 0")
        return tuple(float(number) for number in value)

    def flag(self, key: str, default: bool) -> bool:
        value = self._config.get(key, default)
        self._read.add(key)
        if not isinstance(value, bool):
            raise self.error(key, f"must be true or false, not {shown(value)}")
        return value

    def choice(self, key: str, table: Mapping[str, _Choice], default: str) -> _Choice:
        """The table's entry for a word. An absent key means ``default``."""
        value = self._present(key, default)
        if not isinstance(value, str) or value not in table:
            raise self.error(key, f"is {shown(value)}; served: {', '.join(table)}")
        return table[value]

    def only(self, key: str, allowed: Any, why: str) -> None:
        """Refuses any value but ``allowed``, null or absence."""
        value = self.raw(key)
        same_kind = isinstance(value, bool) == isinstance(allowed, bool)
        if value is None or (value == allowed and same_kind):
            return
        raise self.error(key, f"is {shown(value)}; only {shown(allowed)} is served: {why}")

    def token_ids(
        self, key: str, vocab_size: int, default: int | tuple[int, ...] | None
    ) -> tuple[int, ...]:
        """One id or a list of ids, each below ``vocab_size``; () where there is none.

        The reference class's ``default`` holds where the key is absent, as far as the ids exist.
        """
        self._read.add(key)
        if key not in self._config:
            given = default if isinstance(default, tuple) else () if default is None else (default,)
            return tuple(one for one in given if one < vocab_size)
        value = self._config[key]
        ids = [] if value is None else value if isinstance(value, list) else [value]
        for token_id in ids:
            if isinstance(token_id, bool) or not isinstance(token_id, int):
                raise self.error(key, f"must be a token id or a list of them, not {shown(value)}")
            if not 0 <= token_id < vocab_size:
                raise self.error(key, f"is {shown(token_id)}; token ids lie in 0..{vocab_size - 1}")
        return tuple(dict.fromkeys(ids))

    def parameter_format(self) -> str:
        """Format name of ``dtype`` (older: ``torch_dtype``); f32 where neither is given."""
        key = "dtype" if "dtype" in self else "torch_dtype"
        value = self.raw(key)
        name = (
            "f32" if value is None else from_torch_name(value) if isinstance(value, str) else None
        )
        if name is None:
            served = ", ".join(fmt.torch_name for fmt in FORMATS.values())
            raise self.error(key, f"is {shown(value)}; served: {served}")
        return name

    def nested(self, key: str) -> ConfigReader | None:
        """The object under ``key``, None where it is absent or null."""
        value = self.raw(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.error(key, f"must be an object, not {shown(value)}")
        return ConfigReader(value, self._architecture, f"{self._where}{key}.", self._file)

    def finish(self, harmless: frozenset[str]) -> tuple[str, ...]:
        """Judges every key not read, by the rule at the top; returns those worth a line."""
        unread: list[str] = []
        for key, value in self._config.items():
            private = key.startswith(("_", "transformers"))
            if key in self._read or key in HARMLESS_KEYS or key in harmless or private:
                continue
            if value is None or value is False or value in ("", [], {}):
                continue
            if ARITHMETIC_WORDS & set(re.split(r"[^a-z0-9]+", key.lower())):
                raise self.error(
                    key,
                    f"is {shown(value)}: {self._architecture} as served here gives it no meaning, "
                    "and it may change the arithmetic; remove it only if it does not",
                )
            unread.append(key)
        return tuple(unread)

    def finish_closed(self, known: frozenset[str]) -> None:
        """For objects in which every key is arithmetic: any key not read nor known is refused."""
        for key, value in self._config.items():
            if key not in self._read and key not in known and value is not None:
                raise self.error(key, f"is {shown(value)}: this key is not served")

    def _present(self, key: str, default: Any) -> Any:
        self._read.add(key)
        value = self._config.get(key)
        if value is not None:
            return value
        if default is None:
            problem = "is null" if key in self._config else "is missing"
            raise self.error(key, f"{problem}; {self._architecture} needs it")
        return default
