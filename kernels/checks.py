"""What a launcher checks before it dispatches. Messages name the argument, what came, what may."""

from __future__ import annotations

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
INTEGERS = (torch.int32, torch.int64)


def check_shape(name: str, tensor: Tensor, shape: tuple[int | None, ...]) -> None:
    """None in ``shape`` allows any size."""
    given = tensor.shape
    if given == shape:
        return
    if len(given) == len(shape):
        for got, want in zip(given, shape, strict=True):
            if want is not None and want != got:
                break
        else:
            return
    wanted = ", ".join("any" if size is None else str(size) for size in shape)
    raise ValueError(f"{name} has shape {list(given)}; it must be [{wanted}]")


def check_dtype(name: str, tensor: Tensor, allowed: tuple[torch.dtype, ...]) -> None:
    if tensor.dtype not in allowed:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
        given = str(tensor.dtype).removeprefix("torch.")
        raise ValueError(f"{name} is {given}; it must be one of {names}")


def check_same_device(**tensors: Tensor | None) -> None:
    first: tuple[str, torch.device] | None = None
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if first is None:
            first = (name, tensor.device)
        elif tensor.device != first[1]:
            raise ValueError(
                f"{name} is on {tensor.device}; it must be on {first[1]}, where {first[0]} is"
            )


def check_contiguous(name: str, tensor: Tensor) -> None:
    if not tensor.is_contiguous():
        raise ValueError(
            f"{name} has strides {list(tensor.stride())}; it must be contiguous"
            f" for its shape {list(tensor.shape)}"
        )


def check_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} is {value}; it must be in {low} .. {high}")


def check_both(first: str, a: object | None, second: str, b: object | None) -> None:
    """Both or neither."""
    if (a is None) != (b is None):
        given, missing = (second, first) if a is None else (first, second)
        raise ValueError(f"{given} is given without {missing}; give both or neither")
