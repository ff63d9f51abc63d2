"""Which backend runs an operation: the one place that looks at the device."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import ParamSpec, TypeVar, cast

import torch

P = ParamSpec("P")
R = TypeVar("R")


def select(
    operation: str, device: torch.device, *, cpu: Callable[P, R], gpu: str
) -> Callable[P, R]:
    """The implementation of ``operation`` for ``device``.

    ``gpu`` is "module:function" within kernels.gpu, imported on first use, so that a machine
    without a GPU never needs Triton. Raises NotImplementedError, naming the operation, for a device
    that has no implementation.
    """
    if device.type == "cpu":
        return cpu
    if device.type == "cuda":
        return cast(Callable[P, R], resolve(gpu))
    raise NotImplementedError(f"{operation} has no kernel for {device.type} devices")


def resolve(name: str) -> object:
    """The function "module:function" of kernels.gpu."""
    module, _, function = name.partition(":")
    return getattr(import_module(f"kernels.gpu.{module}"), function)
