"""Reads tensors with pread into memory that the caller owns. Nothing is mapped.

A tensor goes straight to its place where the bytes agree: same format, not transposed, in this
process's memory. Otherwise it passes, chunk by chunk, through one staging buffer that converts,
transposes and crosses to the device: never more than one chunk exists twice. Every value that is
filled in is looked at by weights.loading.finite, beside the reading.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

import torch

from weights.checkpoint.folder import Checkpoint, inside
from weights.checkpoint.matching import Placement
from weights.checkpoint.safetensors_header import TensorEntry
from weights.errors import CheckpointError
from weights.formats import FORMATS, from_safetensors, from_torch_name
from weights.loading.finite import Checker, Span
from weights.strict_json import shown

CHUNK_BYTES = 8 << 20
READ_BYTES = 4 << 20  # of one system call, so that progress shows, and that is looked at next
READERS = 2  # pieces of a tensor under way at once: what takes time is to fill new pages


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
        self._checker = Checker()
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="read")
        self.staging_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._readers.shutdown(cancel_futures=True)
        self._checker.close()
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files.clear()
        self._staging = torch.empty(0, dtype=torch.uint8)

    def fill(self, placement: Placement, views: Mapping[str, torch.Tensor]) -> None:
        """Reads one tensor into its parameters' views, [out, in] or [out], converting to their
        dtype. Raises CheckpointError, here or in a later call or ``settle``, where a value is not
        finite in it; here, where the file changed."""
        entry = placement.entry
        dtype = torch_dtype(from_safetensors(entry.dtype) or "")
        if placement.transposed:
            self._fill_transposed(placement, views, dtype)
            return
        offset = entry.offset
        for piece in placement.pieces:
            view = views[piece.parameter][piece.at : piece.at + piece.size]
            if view.dtype == dtype and view.is_cpu and view.is_contiguous():
                self._read(entry, offset, view, held=view.dtype)
            else:
                self._fill_converted(entry, offset, view, dtype)
            offset += view.numel() * dtype.itemsize

    def settle(self) -> None:
        """What was filled is there, and every value of it was looked at."""
        self._checker.settle()

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
            held = views[placement.pieces[0].parameter].dtype
            offset = entry.offset + start * row_bytes
            chunk = self._staged(entry, offset, count * rows, dtype, held)
            block = chunk.view(count, rows).t()
            for piece in placement.pieces:
                view = views[piece.parameter][piece.at : piece.at + piece.size]
                source = block[piece.start : piece.start + piece.size]
                view[:, start : start + count].copy_(source)

    def _fill_converted(
        self, entry: TensorEntry, offset: int, view: torch.Tensor, dtype: torch.dtype
    ) -> None:
        flat = view.view(-1)
        for start, count in chunks(flat.numel(), self._chunk_bytes // dtype.itemsize):
            chunk = self._staged(entry, offset + start * dtype.itemsize, count, dtype, view.dtype)
            flat[start : start + count].copy_(chunk)

    def _staged(
        self,
        entry: TensorEntry,
        offset: int,
        count: int,
        dtype: torch.dtype,
        held: torch.dtype,
    ) -> torch.Tensor:
        """``count`` elements read into the staging buffer; valid until the next read."""
        self._checker.settle()  # it may still look at what the buffer held
        staging = self._stage(count * dtype.itemsize)[: count * dtype.itemsize]
        self._read(entry, offset, staging, held)
        return staging.view(dtype)

    def _stage(self, size: int) -> torch.Tensor:
        if self._staging.numel() < size:
            self._staging = torch.empty(0, dtype=torch.uint8)  # the old one goes first
            self._staging = torch.empty(size, dtype=torch.uint8)
            self.staging_bytes = max(self.staging_bytes, size)
        return self._staging

    def _read(
        self,
        entry: TensorEntry,
        offset: int,
        target: torch.Tensor,
        held: torch.dtype | None = None,
    ) -> None:
        """Fills contiguous ``target`` with the file's bytes from ``offset``. The values are looked
        at as far as they are to be held in a format."""
        if not target.numel():
            return
        memory = target.view(-1).view(torch.uint8).numpy().data
        descriptor = self._open(entry.file)
        if len(memory) <= READ_BYTES:
            read_span(descriptor, entry, offset, memory)
            self._was_read(entry, offset, memory, held)
            return
        under_way: deque[tuple[int, memoryview, Future[None]]] = deque()
        for start, size in chunks(len(memory), READ_BYTES):
            piece, place = memory[start : start + size], offset + start
            reading = self._readers.submit(read_span, descriptor, entry, place, piece)
            under_way.append((place, piece, reading))
            if len(under_way) > READERS:
                self._wait_for(entry, *under_way.popleft(), held)
        while under_way:
            self._wait_for(entry, *under_way.popleft(), held)

    def _wait_for(
        self,
        entry: TensorEntry,
        offset: int,
        piece: memoryview,
        reading: Future[None],
        held: torch.dtype | None,
    ) -> None:
        reading.result()
        self._was_read(entry, offset, piece, held)

    def _was_read(
        self, entry: TensorEntry, offset: int, piece: memoryview, held: torch.dtype | None
    ) -> None:
        self._on_bytes(len(piece))
        if held is not None:
            self._checker.submit(Span(entry, offset, piece, format_of(held)))

    def _open(self, file: str) -> int:
        if file not in self._files:
            descriptor = os.open(inside(self._checkpoint.folder, file), os.O_RDONLY | os.O_CLOEXEC)
            self._files[file] = descriptor
            if os.fstat(descriptor).st_size != self._checkpoint.file_sizes[file]:
                raise CheckpointError(f"{file}: changed its size since its header was read")
        return self._files[file]


def read_span(descriptor: int, entry: TensorEntry, offset: int, memory: memoryview) -> None:
    """Fills ``memory`` with the file's bytes from ``offset``. Any thread.

    Raises CheckpointError, naming file and tensor, where the file ends before.
    """
    done = 0
    while done < len(memory):
        count = os.preadv(descriptor, [memory[done:]], offset + done)
        if count == 0:
            raise CheckpointError(
                f"{entry.file}: tensor {shown(entry.name)} is cut off: the file shrank"
            )
        done += count


def torch_dtype(format: str) -> torch.dtype:
    """The torch dtype of a format of one element a number."""
    dtype = getattr(torch, FORMATS[format].torch_name)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"format {format} has no torch dtype")
    return dtype


def format_of(dtype: torch.dtype) -> str:
    """The format of one element a number that a torch dtype is."""
    name = from_torch_name(str(dtype))
    if name is None:
        raise ValueError(f"{dtype} is not a format")
    return name


def chunks(total: int, size: int) -> Iterator[tuple[int, int]]:
    """(start, count) pairs that cover [0, total) in steps of at most ``size``."""
    for start in range(0, total, size):
        yield start, min(size, total - start)
