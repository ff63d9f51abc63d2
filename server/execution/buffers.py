"""Makes the runner's persistent buffers from the layout: by name, resident, and nothing else."""

from __future__ import annotations

import torch

from server.memory.layout import Layout, MemoryKind
from weights.formats import FORMATS
from weights.tensor_reader import torch_dtype

_DTYPES = {
    **{name: torch_dtype(name) for name in FORMATS},
    "i64": torch.int64,
    "i32": torch.int32,
    "u8": torch.uint8,
    "bool": torch.bool,
}


def dtype_of(format: str) -> torch.dtype:
    """The torch dtype of a layout's format name."""
    return _DTYPES[format]


def allocate(layout: Layout, device: torch.device) -> dict[str, torch.Tensor]:
    """Every persistent buffer of ``layout``, zeroed; but workspaces, which their kernels make.

    Zeroing writes each page, so the memory is resident before the server says that it is ready and
    no request pays for a first touch (torch.zeros would map pages lazily).
    """
    return {
        buffer.name: torch.empty(buffer.shape, dtype=_DTYPES[buffer.format], device=device).zero_()
        for buffer in layout.buffers
        if buffer.kind is not MemoryKind.WORKSPACE
    }
