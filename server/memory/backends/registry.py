"""The backends that there are, in the order in which they were registered. Standard library only.

What this program brings along is registered at the end; anything else registers a record of its own
with ``register`` or, for a while, ``registered``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from server.memory.backends.native_cpu import NATIVE
from server.memory.backends.record import Backend
from server.memory.backends.torch_cpu import TORCH
from server.memory.backends.triton_cuda import TRITON
from server.memory.engine_args import EngineArgs

AUTO = "auto"  # the device that --device leaves to us

_BACKENDS: dict[str, Backend] = {}


def register(backend: Backend) -> None:
    """Makes a backend known under its name, with the formats that it brings along.

    Raises ValueError for a name that is taken by another record or format.
    """
    if _BACKENDS.get(backend.name, backend) is not backend:
        raise ValueError(f"there is another backend named {backend.name!r}")
    if backend.packed_formats:
        from weights.formats import add_quantised

        for format in backend.packed_formats:
            add_quantised(format)
    _BACKENDS[backend.name] = backend


def unregister(backend: Backend) -> None:
    """Undoes ``register``: neither the backend nor formats that it alone has are known any more.

    Raises ValueError for a backend that is not registered.
    """
    if _BACKENDS.get(backend.name) is not backend:
        raise ValueError(f"the backend {backend.name!r} is not registered")
    del _BACKENDS[backend.name]
    if backend.packed_formats:
        from weights.formats import remove_quantised

        kept = {format for each in backends() for format in each.packed_formats}
        for format in set(backend.packed_formats) - kept:
            remove_quantised(format)


@contextmanager
def registered(*backends: Backend) -> Iterator[None]:
    """Inside, ``backends`` are known beside the others. Raises ValueError as ``register`` does."""
    added: list[Backend] = []
    try:
        for backend in backends:
            register(backend)
            added.append(backend)
        yield
    finally:
        for backend in reversed(added):
            unregister(backend)


def backends() -> tuple[Backend, ...]:
    return tuple(_BACKENDS.values())


def devices() -> tuple[str, ...]:
    """What --device may name beside auto, each once."""
    return tuple(dict.fromkeys(backend.device for backend in backends()))


def backend_named(name: str) -> Backend:
    """Raises ValueError that lists the names there are."""
    try:
        return _BACKENDS[name]
    except KeyError:
        known = ", ".join(_BACKENDS)
        raise ValueError(f"unknown backend {name!r}; known: {known}") from None


def candidates(device: str) -> tuple[Backend, ...]:
    """Those that may serve --device ``device`` unasked, the preferred one first; the last is the
    device's last resort. Raises ValueError for a device that no backend has."""
    found = [backend for backend in backends() if backend.preference is not None]
    if device != AUTO:
        of_device = [backend for backend in backends() if backend.device == device]
        found = [backend for backend in found if backend in of_device] or of_device
    if not found:
        raise ValueError(f"unknown device {device!r}; known: {', '.join((AUTO, *devices()))}")
    return tuple(sorted(found, key=lambda backend: -(backend.preference or 0)))


def backend_of(args: EngineArgs) -> Backend:
    """The backend that placement decided on, else the last resort of the device.

    Raises ValueError for a backend or a device that there is not, or that is left to auto.
    """
    if args.backend is not None:
        return backend_named(args.backend)
    if args.device == AUTO:
        raise ValueError("the device is still left to auto")
    return candidates(args.device)[-1]


for backend in (TORCH, NATIVE, TRITON):
    register(backend)
