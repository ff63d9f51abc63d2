"""What help and messages say of the backends there are. Standard library only."""

from __future__ import annotations

from collections.abc import Callable

from server.memory.backends.record import Backend
from server.memory.backends.registry import AUTO, backends, candidates
from weights.formats import FORMATS


def auto_device() -> str:
    """Which device auto takes, and where."""
    tried = {backend.device: backend for backend in reversed(candidates(AUTO))}
    *preferred, last = reversed(tried.values())
    words = [f"{backend.device} where {backend.found_where}" for backend in preferred]
    return ", else ".join((*words, last.device))


def places(serves: Callable[[Backend], bool]) -> str:
    """The places of the backends that ``serves`` holds for: "a GPU or a CPU"."""
    return " or ".join(dict.fromkeys(each.place for each in backends() if serves(each)))


def only(serves: Callable[[Backend], bool]) -> str:
    """Ends a help text: where alone an option is served; empty where every place has a backend
    that serves it."""
    served = places(serves)
    return "" if served == places(lambda _: True) else f"; on {served} only"


def server_of(serves: Callable[[Backend], bool], device: str) -> str:
    """What would serve, for one whose device is ``device``: other places, or another backend of
    this one."""
    able = [each for each in backends() if serves(each)]
    here = [f"--backend {each.name}" for each in able if each.device == device]
    elsewhere = [each.place for each in able if each.device != device]
    return " or ".join(dict.fromkeys((*elsewhere, *here)))


def by_place(words: Callable[[Backend], object], separator: str) -> str:
    """What holds on the device of auto's last resort, then for each place where something else
    does, and for each backend that is not the first of its place."""
    first = candidates(candidates(AUTO)[-1].device)[0]
    told = {first.place: str(words(first))}
    for backend in sorted(backends(), key=lambda each: -(each.preference or 0)):
        told.setdefault(backend.place, str(words(backend)))
    others = [f"on {place} {text}" for place, text in told.items() if text != told[first.place]]
    others += [
        f"with --backend {backend.name} {words(backend)}"
        for backend in backends()
        if str(words(backend)) != told[backend.place]
    ]
    return separator.join((told[first.place], *others))


def quantisations() -> tuple[str, ...]:
    """Every format that --quantization may name, each once."""
    return tuple(dict.fromkeys(name for each in backends() for name in each.quantisations))


def kv_cache_dtypes() -> dict[str, str]:
    """The formats that --kv-cache-dtype may name, by their names there, each once."""
    served = dict.fromkeys(format for each in backends() for format in each.kv_formats)
    return {dtype_name(format): format for format in served}


def dtype_name(format: str) -> str:
    """What options call a format: as torch does, where torch has it for all numbers."""
    return FORMATS[format].torch_name if format in FORMATS else format


def _multiplies(format: str) -> Callable[[Backend], bool]:
    return lambda backend: format in backend.quantisations


def quantised_where() -> str:
    """Ends a help text: which formats are served in some places only."""
    told: dict[str, list[str]] = {}
    for name in quantisations():
        told.setdefault(only(_multiplies(name)), []).append(name)
    if len(told) == 1:
        return next(iter(told))
    return "".join(where.replace("; ", f"; {', '.join(names)} ") for where, names in told.items())
