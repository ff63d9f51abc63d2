"""Reads tensors for a device: threads fill pinned buffers while earlier ones are being copied.

    file     pread by N threads    pinned buffer 0 | 1 | 2      copies on a side stream     device
    chunk 0  ------------------->  0  ------------------------------------------------->  its place
    chunk 1  ------------------->      1  --------------------------------------------->  ...
    chunk 3  ---- waits until the copy of chunk 0 is done, then fills buffer 0 again

Converting and transposing happen on the device, through a staged copy there. The main stream, on
which tensors are fused and packed, waits for the copies by ``settle``; the host waits for a copy
only when it wants the buffer again, and at the end.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Protocol, Self

import torch

from weights.checkpoint.folder import Checkpoint
from weights.checkpoint.matching import Placement
from weights.checkpoint.safetensors_header import TensorEntry
from weights.formats import ceil_div, from_safetensors, round_up
from weights.loading.finite import Span, check
from weights.loading.tensor_reader import (
    READ_BYTES,
    TensorReader,
    chunks,
    format_of,
    read_span,
    torch_dtype,
)

NUM_BUFFERS = 3
MAX_BUFFER_BYTES = 64 << 20
MIN_BUFFER_BYTES = 1 << 20
_BUFFER_SHARE = 16  # a buffer is at most this part of all bytes to read
_MAX_THREADS = 8


class Mark(Protocol):
    """A place in the order of copies."""

    def wait(self) -> None:
        """The host waits until the copies before it are done. Raises what they raised."""
        ...


class CopyStream(Protocol):
    """A stream of a device on which copies run beside its main one."""

    def pinned(self, num_bytes: int) -> torch.Tensor:
        """uint8 host memory that the device reads while the host goes on."""
        ...

    def run(self, work: Callable[[], None]) -> None:
        """Hands ``work`` over: it enqueues copies and conversions on this stream."""
        ...

    def mark(self) -> Mark:
        """The place behind everything handed over so far."""
        ...

    def follow_main(self) -> None:
        """What is handed over from now on waits for the main stream as it is now."""
        ...

    def join_main(self) -> None:
        """The main stream waits for everything handed over so far."""
        ...


class PinnedReader(TensorReader):
    """A TensorReader for views on a device. ``equal`` still compares on the host.

    ``staging_bytes`` counts the pinned buffers and the largest staged copy on the device.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        on_bytes: Callable[[int], None],
        copies: CopyStream,
        *,
        buffer_bytes: int | None = None,
        num_threads: int | None = None,
    ) -> None:
        super().__init__(checkpoint, on_bytes)
        self._copies = copies
        self._buffer_bytes = buffer_bytes or _buffer_bytes(checkpoint.total_bytes)
        self._num_threads = num_threads or min(_MAX_THREADS, len(os.sched_getaffinity(0)))
        self._threads = ThreadPoolExecutor(self._num_threads, thread_name_prefix="read")
        self._buffers: list[torch.Tensor] = []
        self._marks: dict[int, Mark] = {}  # by buffer: behind the copy that last read it
        self._next = 0
        self._staged_bytes = 0

    def __enter__(self) -> Self:
        self._buffers = [self._copies.pinned(self._buffer_bytes) for _ in range(NUM_BUFFERS)]
        self.staging_bytes = NUM_BUFFERS * self._buffer_bytes
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._threads.shutdown()
        if error is None:
            self.settle()
        self._copies.mark().wait()  # before the buffers go
        self._marks.clear()
        self._buffers.clear()
        super().__exit__(kind, error, trace)

    def settle(self) -> None:
        """What the main stream does from now on finds every tensor filled so far."""
        self._copies.join_main()

    def fill(self, placement: Placement, views: Mapping[str, torch.Tensor]) -> None:
        """As TensorReader.fill; the values are there for the main stream after ``settle``."""
        entry = placement.entry
        dtype = torch_dtype(from_safetensors(entry.dtype) or "")
        self._copies.follow_main()  # the views' memory may still be read by what was there before
        if placement.transposed:
            self._fill_turned(placement, views, dtype)
            return
        offset = entry.offset
        for piece in placement.pieces:
            flat = views[piece.parameter][piece.at : piece.at + piece.size].view(-1)
            for start, count in chunks(flat.numel(), self._buffer_bytes // dtype.itemsize):
                target = flat[start : start + count]
                self._send(entry, offset + start * dtype.itemsize, count, dtype, [target])
            offset += flat.numel() * dtype.itemsize

    def _fill_turned(
        self, placement: Placement, views: Mapping[str, torch.Tensor], dtype: torch.dtype
    ) -> None:
        entry = placement.entry
        columns, rows = entry.shape  # the file's [in, out]
        row_bytes = rows * dtype.itemsize
        for start, count in chunks(columns, max(1, self._buffer_bytes // row_bytes)):
            targets = [
                views[piece.parameter][piece.at : piece.at + piece.size, start : start + count].t()
                for piece in placement.pieces
            ]
            offset = entry.offset + start * row_bytes
            self._send(entry, offset, count * rows, dtype, targets, columns=rows)

    def _send(
        self,
        entry: TensorEntry,
        offset: int,
        count: int,
        dtype: torch.dtype,
        targets: list[torch.Tensor],
        columns: int | None = None,
    ) -> None:
        """Reads ``count`` elements and hands their copy over: to one target, or as [count //
        columns, columns] to several targets that lie side by side."""
        index, source = self._take_buffer(count * dtype.itemsize)
        self._read_with_threads(entry, offset, source, format_of(targets[0].dtype))
        values = source.view(dtype)
        if columns is None and targets[0].dtype == dtype:
            self._copies.run(lambda: _copy(targets[0], values))
        else:
            self._staged_bytes = max(self._staged_bytes, values.nbytes)
            self.staging_bytes = NUM_BUFFERS * self._buffer_bytes + self._staged_bytes
            self._copies.run(lambda: _copy_staged(targets, values, columns))
        self._marks[index] = self._copies.mark()

    def _take_buffer(self, num_bytes: int) -> tuple[int, torch.Tensor]:
        """The next buffer's first bytes, once the copy out of it is done."""
        index = self._next
        self._next = (index + 1) % len(self._buffers)
        mark = self._marks.pop(index, None)
        if mark is not None:
            mark.wait()
        if self._buffers[index].numel() < num_bytes:  # one row of a turned tensor is larger
            self._buffers[index] = self._copies.pinned(num_bytes)
        return index, self._buffers[index][:num_bytes]

    def _read_with_threads(
        self, entry: TensorEntry, offset: int, target: torch.Tensor, held: str
    ) -> None:
        """Each thread looks at what it has read, while it is hot."""
        descriptor = self._open(entry.file)
        memory = target.numpy().data

        def read(start: int, size: int) -> int:
            span = Span(entry, offset + start, memory[start : start + size], held)
            read_span(descriptor, entry, span.offset, span.memory)
            check(span)
            return size

        share = ceil_div(len(memory), self._num_threads)
        piece = max(READ_BYTES, round_up(share, 16))  # whole elements
        spans = list(chunks(len(memory), piece))
        if len(spans) < 2:
            self._on_bytes(read(0, len(memory)))
            return
        for done in [self._threads.submit(read, start, size) for start, size in spans]:
            self._on_bytes(done.result())


def _copy(target: torch.Tensor, values: torch.Tensor) -> None:
    target.copy_(values, non_blocking=True)


def _copy_staged(targets: list[torch.Tensor], values: torch.Tensor, columns: int | None) -> None:
    """The bytes cross as they are; types and order change on the device."""
    staged = torch.empty(values.shape, dtype=values.dtype, device=targets[0].device)
    staged.copy_(values, non_blocking=True)
    if columns is None:
        targets[0].copy_(staged)
        return
    start = 0
    for target in targets:
        width = target.shape[1]
        target.copy_(staged.view(-1, columns)[:, start : start + width])
        start += width


def _buffer_bytes(total: int) -> int:
    """Large enough to stream, small beside a small model; a whole number of any element."""
    wanted = max(MIN_BUFFER_BYTES, min(MAX_BUFFER_BYTES, total // _BUFFER_SHARE))
    return wanted // 16 * 16


# The copies of weights.loading.pinned_reader on an NVIDIA GPU.


class CudaMark:
    def __init__(self, stream: torch.cuda.Stream) -> None:
        self.event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self.event.record(stream)

    def wait(self) -> None:
        self.event.synchronize()


class CudaCopies:
    """A stream beside the device's default one, which is the main one while weights load.

    Memory that ``work`` allocates belongs to this stream, so the allocator reuses it in order.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def pinned(self, num_bytes: int) -> torch.Tensor:
        return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)

    def run(self, work: Callable[[], None]) -> None:
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            work()

    def mark(self) -> CudaMark:
        return CudaMark(self._stream)

    def follow_main(self) -> None:
        self._stream.wait_stream(torch.cuda.current_stream(self._device))

    def join_main(self) -> None:
        torch.cuda.current_stream(self._device).wait_stream(self._stream)
