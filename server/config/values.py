"""Reads an option's text into its value. Each reader raises ValueError with what is allowed."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping

from server.units import SIZE_UNITS, format_size
from weights.strict_json import shown

Reader = Callable[[str], object]

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")


def read_text(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be empty")
    return text


def integer(low: int, high: int) -> Reader:
    return lambda text: read_integer(text, low, high)


def read_integer(text: str, low: int, high: int) -> int:
    """A whole number in [low, high]. Raises ValueError."""
    try:
        value = int(text)
    except ValueError:
        raise ValueError(f"{shown(text)} is not a whole number") from None
    if not low <= value <= high:
        raise ValueError(f"{shown(value)} is not between {low} and {high}")
    return value


def seconds(low: float, high: float) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise ValueError(f"{text!r} is not a number of seconds") from None
        if not math.isfinite(value) or not low <= value <= high:
            raise ValueError(f"{text} is not between {low:g} and {high:g} seconds")
        return value

    return read


def size(low: int, high: int) -> Reader:
    """Bytes: a whole number, or a number with KiB, MiB, GiB or TiB."""
    return lambda text: read_size(text, low, high)


def read_size(text: str, low: int, high: int) -> int:
    """Bytes in [low, high] from a text as ``size`` takes it. Raises ValueError."""
    match = _SIZE.fullmatch(text.strip())
    unit = match.group(2).upper() if match else ""
    if match is None or unit not in SIZE_UNITS:
        raise ValueError(f"{shown(text)} is not a size such as 512MiB or 2GiB")
    # Compared before the conversion: of hundreds of digits float makes infinity.
    value = float(match.group(1)) * SIZE_UNITS[unit]
    if not low <= value <= high:
        given = shown(text, 60) if unit else f"{shown(text, 60)} (bytes)"
        raise ValueError(f"{given} is not between {format_size(low)} and {format_size(high)}")
    return int(value)


def choice(*allowed: str) -> Reader:
    return choice_of(lambda: allowed)


def named(values: Callable[[], Mapping[str, object]]) -> Reader:
    """What ``values`` has under the text; they are asked for when there is one to read."""

    def read(text: str) -> object:
        known = values()
        if text not in known:
            raise ValueError(f"{text!r} is not one of {', '.join(known)}")
        return known[text]

    return read


def choice_of(values: Callable[[], tuple[str, ...]]) -> Reader:
    """One of ``values``, which are asked for when there is a text to read."""
    return named(lambda: {value: value for value in values()})


def read_switch(text: str) -> bool:
    if text not in ("on", "off"):
        raise ValueError(f"{text!r} is neither on nor off")
    return text == "on"


def none_or(read_value: Reader) -> Reader:
    """None for the word none, else what ``read_value`` reads."""

    def read(text: str) -> object:
        return None if text == "none" else read_value(text)

    return read


def zero_or(read_value: Callable[[str], float]) -> Reader:
    """0 for what switches a thing off, else what ``read_value`` reads."""

    def read(text: str) -> object:
        try:
            return 0.0 if float(text) == 0 else read_value(text)
        except ValueError:
            return read_value(text)  # its words say what is allowed

    return read


def auto_or(read_value: Reader) -> Reader:
    """None for the word auto, else what ``read_value`` reads."""

    def read(text: str) -> object:
        return None if text == "auto" else read_value(text)

    return read
