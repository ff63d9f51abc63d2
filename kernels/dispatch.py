"""Which backend runs an operation: the one place that looks at the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import torch

from kernels.backends import TORCH_CPU, TRITON_CUDA, KernelBackend

_OF_DEVICE = {backend.device_type: backend for backend in (TORCH_CPU, TRITON_CUDA)}
# Several backends can have their tensors on one device: who runs another than the device's first
# says so around its work, so that no operation has to be told.
_CHOSEN: ContextVar[KernelBackend | None] = ContextVar("kernel backend", default=None)


@contextmanager
def using(backend: KernelBackend) -> Iterator[None]:
    """Inside, ``backend`` runs the operations on tensors of its device."""
    token = _CHOSEN.set(backend)
    try:
        yield
    finally:
        _CHOSEN.reset(token)


def backend_for(device: torch.device) -> KernelBackend:
    """Whose operations run on tensors of ``device``. Raises NotImplementedError for a device that
    no backend is for."""
    chosen, device_type = _CHOSEN.get(), _device_type(device)
    if chosen is not None and chosen.device_type == device_type:
        return chosen
    backend = _OF_DEVICE.get(device_type)
    if backend is None:
        raise NotImplementedError(f"no backend has kernels for {device_type} devices")
    return backend


@cache
def _device_type(device: torch.device) -> str:
    """Each operation asks, and torch makes the word anew each time."""
    return device.type


def select(operation: str, device: torch.device) -> Callable[..., Any]:
    """The implementation of ``operation`` for tensors of ``device``.

    Raises NotImplementedError, naming the operation, where the backend has none.
    """
    implementation = backend_for(device).implementation(operation)
    if not callable(implementation):
        raise TypeError(f"{operation} is a {type(implementation).__name__}, not a function")
    return implementation


def gpu_index(device: torch.device) -> int | None:
    """Which NVIDIA GPU a tensor of ``device`` is on; None for memory of the host, where Triton
    interprets kernels."""
    if device.type != "cuda":
        return None
    return torch.cuda.current_device() if device.index is None else device.index
