"""Which backend runs an operation: the one place that looks at the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def select(operation: str, device: torch.device, *, cpu: Callable[P, R]) -> Callable[P, R]:
    """The implementation of ``operation`` for ``device``.

    Raises NotImplementedError, naming the operation, for a device that has none.
    """
    if device.type == "cpu":
        return cpu
    if device.type == "cuda":
        raise NotImplementedError(
            f"{operation}: no Triton kernel yet; the tensor must be on the CPU, not on {device}"
        )
    raise NotImplementedError(f"{operation} has no kernel for {device.type} devices")
