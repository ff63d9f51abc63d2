"""A device: work is handed over, and where the device runs by itself the host goes on.

Work is handed over as a function of no arguments that starts kernels and copies; it may not ask for
a result. It is called at once: a CPU (server.execution.cpu_device) does it then, and for a GPU what
is called only enqueues. There one stream does everything in order: what a step uploads and
downloads is kilobytes, so a second stream would save less than its events cost.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from server.engine.step_plan import ExecutorLost
from server.errors import StartupError
from server.execution.live_bytes import AllocatorPeak, Meter
from server.memory.accounting.reading import DeviceMemory
from weights.loading.pinned_reader import CopyStream, CudaCopies

Work = Callable[[], None]


class Event(Protocol):
    """A place in the order of work."""

    @property
    def is_done(self) -> bool:
        """Whether the device has come past it. Does not wait."""
        ...

    def wait(self) -> None:
        """The host waits until the device has come past it. Raises what the work raised."""
        ...

    def seconds_since(self, earlier: Event) -> float:
        """Device time between two events that are both done."""
        ...


class Graph(Protocol):
    """Captured work, to be handed over again with ``Device.replay``. Opaque."""


class Device(Protocol):
    @property
    def torch_device(self) -> torch.device:
        """Where tensors are made."""
        ...

    @property
    def description(self) -> str:
        """What it is, for people."""
        ...

    @property
    def overlaps(self) -> bool:
        """Whether the host goes on while work that was handed over is done."""
        ...

    @property
    def kernel_cache(self) -> str | None:
        """The folder of kernels compiled for it, where they are."""
        ...

    def copies(self) -> CopyStream | None:
        """How tensors are brought there while a checkpoint is read; None for memory of the host."""
        ...

    def peak_meter(self) -> Meter:
        """Measures the most bytes of tensors alive at once while it is entered."""
        ...

    def pinned(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Zeroed host memory that the device copies from and to without the host waiting."""
        ...

    def run(self, work: Work) -> None:
        """Hands ``work`` over, behind all before it."""
        ...

    def record(self) -> Event:
        """An event behind everything handed over so far."""
        ...

    def capture(self, work: Work) -> Graph:
        """Runs ``work`` once, then captures it without running it. Waits for the device.

        What the captured work reads and writes is fixed: the same addresses, the same numbers.
        Captured graphs share one pool of memory, so their intermediates must not outlive them.
        """
        ...

    def replay(self, graph: Graph) -> None:
        """Hands captured work over, behind all before it."""
        ...

    def synchronize(self) -> None:
        """The host waits for everything handed over so far, and for what was started on this
        device in any other way, such as loading weights."""
        ...


@dataclass(frozen=True, slots=True)
class OpenedDevice:
    """A device, and its memory's base reading taken."""

    device: Device
    memory: DeviceMemory


@contextmanager
def lost_with_the_context() -> Iterator[None]:
    """An error of the device itself leaves its context unusable for ever: ExecutorLost.

    Running out of memory is not such an error: the allocator raises it as one of another kind, and
    a launch that finds no room for its own says so.
    """
    try:
        yield
    except torch.AcceleratorError as error:
        if "out of memory" in str(error):
            raise
        raise ExecutorLost(f"the GPU can run nothing any more: {error}") from error


class CudaEvent:
    def __init__(self, stream: torch.cuda.Stream) -> None:
        self.event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self.event.record(stream)

    @property
    def is_done(self) -> bool:
        with lost_with_the_context():
            return bool(self.event.query())  # type: ignore[no-untyped-call]

    def wait(self) -> None:
        with lost_with_the_context():
            self.event.synchronize()

    def seconds_since(self, earlier: Event) -> float:
        if not isinstance(earlier, CudaEvent):
            raise ValueError(f"{type(earlier).__name__} is not an event of this device")
        return float(earlier.event.elapsed_time(self.event)) / 1e3


class CudaDevice:
    """One NVIDIA GPU, with a stream and a pool for graphs of its own."""

    overlaps = True

    def __init__(self, index: int = 0, kernel_cache: str | None = None) -> None:
        self.torch_device = torch.device("cuda", index)
        # Partial sums of a product stay in float32, as linear guarantees; the library's default
        # lets it round them to 16 bits where it splits a product over its inner dimension.
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
        self._stream = torch.cuda.Stream(self.torch_device)  # type: ignore[no-untyped-call]
        self.kernel_cache = kernel_cache
        with torch.cuda.device(self.torch_device):
            self.graph_pool = torch.cuda.graph_pool_handle()

    @property
    def description(self) -> str:
        return torch.cuda.get_device_name(self.torch_device)

    def copies(self) -> CudaCopies:
        return CudaCopies(self.torch_device)

    def peak_meter(self) -> AllocatorPeak:
        return AllocatorPeak(self.torch_device)

    def pinned(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype, pin_memory=True)

    def run(self, work: Work) -> None:
        with (
            lost_with_the_context(),
            torch.cuda.device(self.torch_device),
            torch.cuda.stream(self._stream),
            torch.inference_mode(),
        ):
            work()

    def record(self) -> CudaEvent:
        with lost_with_the_context():
            return CudaEvent(self._stream)

    def capture(self, work: Work) -> torch.cuda.CUDAGraph:
        self.run(work)  # compiles kernels and sets libraries up, which a capture cannot
        self.synchronize()
        graph = torch.cuda.CUDAGraph()
        with (
            torch.cuda.device(self.torch_device),
            torch.inference_mode(),
            torch.cuda.graph(
                graph,
                pool=self.graph_pool,
                stream=self._stream,
                capture_error_mode="thread_local",  # other threads may read memory figures
            ),
        ):
            work()
        return graph

    def replay(self, graph: Graph) -> None:
        if not isinstance(graph, torch.cuda.CUDAGraph):
            raise ValueError(f"{type(graph).__name__} is not a graph of this device")
        with (
            lost_with_the_context(),
            torch.cuda.device(self.torch_device),
            torch.cuda.stream(self._stream),
        ):
            graph.replay()

    def synchronize(self) -> None:
        with lost_with_the_context():
            torch.cuda.synchronize(self.torch_device)


def open_cuda() -> CudaDevice:
    """
    Raises:
        StartupError: there is no GPU that torch can use, or its compiled kernels cannot be kept.
    """
    return CudaDevice(cuda_index(), compiled_kernels_folder())


def cuda_index() -> int:
    """Raises StartupError where torch finds no GPU that it can use."""
    if not torch.cuda.is_available():
        raise StartupError(
            f"torch {torch.__version__} finds no GPU that it can use; --device cpu serves without"
        )
    return torch.cuda.current_device()


def compiled_kernels_folder() -> str:
    """Where Triton keeps what it compiles, so that a later start compiles nothing. Made if absent.

    Entries are named by a hash of source, options, Triton's version and the GPU's architecture, so
    one folder serves all of them.

    Raises:
        StartupError: nothing can be kept there, as in a container that may not write.
    """
    import triton

    folder: str = triton.knobs.cache.dir
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise StartupError(
            f"compiled kernels cannot be kept in {folder}: {error.strerror}. The variable "
            "TRITON_CACHE_DIR names another folder"
        ) from error
    return folder
