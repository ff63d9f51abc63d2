"""A fake device whose kernels are the GPU's own, run by Triton's interpreter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import Any

import pytest

import kernels
from kernels.backends import TRITON_CUDA
from kernels.dispatch import using
from tests.execution.fake_device import OPERATIONS, FakeDevice

INTERPRETED = replace(TRITON_CUDA, device_type="cpu")
_REAL = {name: getattr(kernels, name) for name in (*OPERATIONS, "AttentionWorkspace")}


def _interpreted(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        with using(INTERPRETED):
            return function(*args, **kwargs)

    return run


def install(device: FakeDevice, patch: pytest.MonkeyPatch) -> None:
    """Routes every public kernel through the device to kernels.gpu."""
    patch.setattr(kernels, "AttentionWorkspace", _interpreted(_REAL["AttentionWorkspace"]))
    for name in OPERATIONS:
        patch.setattr(kernels, name, device.kernel(_interpreted(_REAL[name])))
