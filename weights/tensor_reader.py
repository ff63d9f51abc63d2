"""Reads tensors with pread into memory that the caller owns. Nothing is mapped.

A tensor goes straight to its place where the bytes agree: same format, not transposed, in this
process's memory. Otherwise it passes, chunk by chunk, through one staging buffer that converts,
transposes and crosses to the device: never more than one chunk exists twice.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Self

import torch

from weights.checkpoint import Checkpoint, inside
from weights.errors import CheckpointError
from weights.formats import FORMATS, from_safetensors
from weights.matching import Placement
from weights.safetensors_header import TensorEntry
from weights.strict_json import show

CHUNK_BYTES = 8 << 20
_READ_BYTES = 64 << 20  # of one system call, so that progress shows
_F16_MAX = 65504.0


class TensorReader:
    """Open files of one checkpoint, to be used in a ``with`` statement.

    ``on_bytes`` hears of every read. ``staging_bytes`` is the most that the staging buffer held.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        on_bytes: Callable[[int], None],
        *,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> None:
        self._checkpoint = checkpoint
        self._on_bytes = on_bytes
        self._chunk_bytes = chunk_bytes
        self._files: dict[str, int] = {}
        self._staging = torch.empty(0, dtype=torch.uint8)
        self.staging_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files.clear()
        self._staging = torch.empty(0, dtype=torch.uint8)

    def fill(self, placement: Placement, views: Mapping[str, torch.Tensor]) -> None:
        """Reads one tensor into its parameters' views, [out, in] or [out], converting to their
        dtype. Raises CheckpointError where a value does not fit it or the file changed."""
        entry = placement.entry
        dtype = torch_dtype(from_safetensors(entry.dtype) or "")
        if placement.transposed:
            self._fill_transposed(placement, views, dtype)
            return
        offset = entry.offset
        for piece in placement.pieces:
            view = views[piece.parameter]
            if view.dtype == dtype and view.device.type == "cpu" and view.is_contiguous():
                self._read(entry, offset, view)
            else:
                self._fill_converted(entry, offset, view, dtype)
            offset += view.numel() * dtype.itemsize

    def settle(self) -> None:
        """What was filled is there already."""

    def equal(self, left: TensorEntry, right: TensorEntry) -> bool:
        """Whether two tensors of one size hold the same bytes. Reads both."""
        half = self._chunk_bytes // 2
        for start, size in chunks(left.nbytes, half):
            staging = self._stage(2 * half)
            first, second = staging[:size], staging[half : half + size]
            self._read(left, left.offset + start, first)
            self._read(right, right.offset + start, second)
            if not torch.equal(first, second):
                return False
        return True

    def _fill_transposed(
        self, placement: Placement, views: Mapping[str, torch.Tensor], dtype: torch.dtype
    ) -> None:
        entry = placement.entry
        columns, rows = entry.shape  # the file's [in, out]
        row_bytes = rows * dtype.itemsize
        for start, count in chunks(columns, max(1, self._chunk_bytes // row_bytes)):
            chunk = self._staged(entry, entry.offset + start * row_bytes, count * rows, dtype)
            block = chunk.view(count, rows).t()
            for piece in placement.pieces:
                view = views[piece.parameter]
                check_fits(chunk, view.dtype, entry)
                source = block[piece.start : piece.start + piece.size]
                view[:, start : start + count].copy_(source)

    def _fill_converted(
        self, entry: TensorEntry, offset: int, view: torch.Tensor, dtype: torch.dtype
    ) -> None:
        flat = view.view(-1)
        for start, count in chunks(flat.numel(), self._chunk_bytes // dtype.itemsize):
            chunk = self._staged(entry, offset + start * dtype.itemsize, count, dtype)
            check_fits(chunk, view.dtype, entry)
            flat[start : start + count].copy_(chunk)

    def _staged(
        self, entry: TensorEntry, offset: int, count: int, dtype: torch.dtype
    ) -> torch.Tensor:
        """``count`` elements read into the staging buffer; valid until the next read."""
        staging = self._stage(count * dtype.itemsize)[: count * dtype.itemsize]
        self._read(entry, offset, staging)
        return staging.view(dtype)

    def _stage(self, size: int) -> torch.Tensor:
        if self._staging.numel() < size:
            self._staging = torch.empty(0, dtype=torch.uint8)  # the old one goes first
            self._staging = torch.empty(size, dtype=torch.uint8)
            self.staging_bytes = max(self.staging_bytes, size)
        return self._staging

    def _read(self, entry: TensorEntry, offset: int, target: torch.Tensor) -> None:
        """Fills contiguous ``target`` with the file's bytes from ``offset``."""
        if not target.numel():
            return
        memory = target.view(-1).view(torch.uint8).numpy().data
        read_span(self._open(entry.file), entry, offset, memory, self._on_bytes)

    def _open(self, file: str) -> int:
        if file not in self._files:
            descriptor = os.open(inside(self._checkpoint.folder, file), os.O_RDONLY | os.O_CLOEXEC)
            self._files[file] = descriptor
            if os.fstat(descriptor).st_size != self._checkpoint.file_sizes[file]:
                raise CheckpointError(f"{file}: changed its size since its header was read")
        return self._files[file]


def read_span(
    descriptor: int,
    entry: TensorEntry,
    offset: int,
    memory: memoryview,
    on_bytes: Callable[[int], None] | None = None,
) -> None:
    """Fills ``memory`` with the file's bytes from ``offset``, and says so as they come. Any thread.

    Raises CheckpointError, naming file and tensor, where the file ends before.
    """
    done = 0
    while done < len(memory):
        part = memory[done : done + _READ_BYTES]
        count = os.preadv(descriptor, [part], offset + done)
        if count == 0:
            raise CheckpointError(
                f"{entry.file}: tensor {show(entry.name)} is cut off: the file shrank"
            )
        done += count
        if on_bytes is not None:
            on_bytes(count)


def torch_dtype(format: str) -> torch.dtype:
    """The torch dtype of a format of one element a number."""
    dtype = getattr(torch, FORMATS[format].torch_name)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"format {format} has no torch dtype")
    return dtype


def chunks(total: int, size: int) -> Iterator[tuple[int, int]]:
    """(start, count) pairs that cover [0, total) in steps of at most ``size``."""
    for start in range(0, total, size):
        yield start, min(size, total - start)


def check_fits(chunk: torch.Tensor, target: torch.dtype, entry: TensorEntry) -> None:
    """float16 alone is narrower in range than the others: beyond 65504 it would be infinite.

    Raises CheckpointError, naming file and tensor, where a value of ``chunk`` is.
    """
    if target != torch.float16 or chunk.dtype == torch.float16:
        return
    low, high = torch.aminmax(chunk)
    if low.item() < -_F16_MAX or high.item() > _F16_MAX:
        raise CheckpointError(
            f"{entry.file}: tensor {show(entry.name)} has values beyond 65504, which f16 cannot "
            "hold; serve it as bf16 or f32"
        )
