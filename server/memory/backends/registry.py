"""The backends that there are, by name. No torch."""

from __future__ import annotations

from server.memory.backends.cpu import CPU
from server.memory.backends.cuda import CUDA
from server.memory.backends.record import Backend
from weights.formats import add_quantised

_BACKENDS: dict[str, Backend] = {}


def register(backend: Backend) -> None:
    """Makes a backend known under its name, with the formats that it brings along.

    Raises ValueError for a name that is taken by another record.
    """
    if _BACKENDS.get(backend.name, backend) is not backend:
        raise ValueError(f"there is another backend named {backend.name!r}")
    for format in backend.packed_formats:
        add_quantised(format)
    _BACKENDS[backend.name] = backend


def backend_named(name: str) -> Backend:
    """Raises ValueError that lists the names there are."""
    try:
        return _BACKENDS[name]
    except KeyError:
        known = ", ".join(_BACKENDS)
        raise ValueError(f"unknown backend {name!r}; known: {known}") from None


for backend in (CPU, CUDA):
    register(backend)
