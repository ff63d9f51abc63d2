"""The copies of weights.pinned_reader on an NVIDIA GPU."""

from __future__ import annotations

from collections.abc import Callable

import torch


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
