"""Makes the runner's persistent buffers from the layout: by name, resident, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import torch

from server.memory.kinds import MemoryKind
from server.memory.layout import Layout
from weights.formats import FORMATS
from weights.loading.tensor_reader import chunks, torch_dtype

Progress = Callable[[int, int], None]  # bytes done, bytes to do

_PIECE_BYTES = 256 << 20  # that are zeroed at once

_DTYPES = {
    **{name: torch_dtype(name) for name in FORMATS},
    "i64": torch.int64,
    "i32": torch.int32,
    "u8": torch.uint8,
    "int8": torch.int8,
    "bool": torch.bool,
}


def dtype_of(format: str) -> torch.dtype:
    """The torch dtype of a layout's format name."""
    return _DTYPES[format]


def allocate(
    layout: Layout, device: torch.device, progress: Progress | None = None
) -> dict[str, torch.Tensor]:
    """Every persistent buffer of ``layout``, zeroed; but workspaces, which their kernels make.

    Zeroing writes each page, so the memory is resident before the server says that it is ready and
    no request pays for a first touch (torch.zeros would map pages lazily). ``progress`` is told the
    bytes that are there and all bytes: where a machine makes memory as it is touched, half of it
    may take minutes.
    """
    wanted = [buffer for buffer in layout.buffers if buffer.kind is not MemoryKind.WORKSPACE]
    total, done = sum(buffer.nbytes for buffer in wanted), 0
    made = {}
    for buffer in wanted:
        tensor = torch.empty(buffer.shape, dtype=_DTYPES[buffer.format], device=device)
        flat = tensor.view(-1)
        for start, size in chunks(len(flat), _PIECE_BYTES // flat.element_size()):
            piece = flat[start : start + size].zero_()
            done += piece.nbytes
            if progress is not None:
                progress(done, total)
        made[buffer.name] = tensor
    return made
