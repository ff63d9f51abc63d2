"""Writes a safetensors file tensor by tensor, so that one tensor at a time is in memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from weights.formats import get_format, tensor_bytes

_ALIGNMENT = 8  # of the first tensor, as the format's own writer pads


@dataclass(frozen=True, slots=True)
class TensorToWrite:
    name: str
    shape: tuple[int, ...]
    make: Callable[[], torch.Tensor]  # float32, of ``shape``


def write_safetensors(path: Path, tensors: Sequence[TensorToWrite], format: str) -> int:
    """Writes ``tensors`` in order, converted to ``format``; returns the bytes of their data."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        end = offset + tensor_bytes(tensor.shape, format)
        header[tensor.name] = {
            "dtype": get_format(format).safetensors_name,
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % _ALIGNMENT)
    dtype = getattr(torch, get_format(format).torch_name)
    with path.open("wb") as stream:
        stream.write(len(encoded).to_bytes(8, "little"))
        stream.write(encoded)
        for tensor in tensors:
            data = tensor.make().to(dtype).contiguous()
            if tuple(data.shape) != tensor.shape:
                raise ValueError(f"{tensor.name}: made {tuple(data.shape)}, not {tensor.shape}")
            stream.write(data.view(-1).view(torch.uint8).numpy().data)
    return offset
