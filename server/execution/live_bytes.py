"""Measures the most bytes of intermediate tensors alive at once in a step.

On a CPU a dispatch mode sees each tensor that an operation makes; its storage is held weakly, so
what is alive is known without keeping anything alive. Memory that an operation takes and gives back
inside itself is not seen. Watching costs some microseconds an operation, so a runner watches the
largest step it has met and not every one. On a GPU torch's allocator keeps the peak itself, of
everything that it handed out; what a captured graph uses lies in the graph's own pool, and is no
part of a step that is watched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While entered, tracks the storages that operations make.

    ``peak_bytes`` is the most that was alive at once; ``made`` the sizes of all storages made, in
    order, of at least ``record_above`` bytes.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """torch wraps a mode so that its compiler skips it, and imports the compiler for that at
        the first call: a second and 70 MB. Nothing is compiled here, so the wrapping is declined.
        """
        return False

    def __init__(self, *, record_above: int = 1 << 20) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak_bytes = 0
        self.made: list[int] = []
        self._record_above = record_above
        # By the storage's place, which nothing else takes while there is a weak reference to it.
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}
        self._most = 0  # bytes of those, some of which may have died

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # What comes out of an operation that was given it is a view, or was written in place.
        given = {tensor.untyped_storage()._cdata for tensor in _tensors((args, kwargs))}
        out = func(*args, **(kwargs or {}))
        for tensor in _tensors(out):
            storage = tensor.untyped_storage()
            if storage._cdata not in given:
                self._see(storage)
        if self._most > self.peak_bytes:
            self.peak_bytes = max(self.peak_bytes, self.alive_bytes())
        return out

    def alive_bytes(self) -> int:
        """Of what is alive now."""
        self._forget()
        return self._most

    def _see(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._live:
            return
        nbytes = storage.nbytes()
        self._live[storage._cdata] = StorageWeakRef(storage), nbytes  # type: ignore[no-untyped-call]
        self._most += nbytes
        if nbytes >= self._record_above:
            self.made.append(nbytes)

    def _forget(self) -> None:
        """Drops what has died: asked only where the peak may have risen, since it takes long."""
        for place, (ref, nbytes) in list(self._live.items()):
            if ref.expired():  # type: ignore[no-untyped-call]
                del self._live[place]
                self._most -= nbytes


class AllocatorStatistics(Protocol):
    """The part of torch.cuda that is asked."""

    def memory_allocated(self, device: torch.device) -> int: ...

    def max_memory_allocated(self, device: torch.device) -> int: ...

    def reset_peak_memory_stats(self, device: torch.device) -> None: ...


class AllocatorPeak:
    """While entered, the CUDA allocator's peak starts anew; ``peak_bytes`` is what came on top of
    what was held at the start. Allocation follows the order in which work is handed over, so
    nothing waits for the device."""

    def __init__(self, device: torch.device, statistics: AllocatorStatistics = torch.cuda) -> None:
        self._device = device
        self._statistics = statistics
        self._base = 0
        self.peak_bytes = 0

    def __enter__(self) -> AllocatorPeak:
        self._statistics.reset_peak_memory_stats(self._device)
        self._base = self._statistics.memory_allocated(self._device)
        return self

    def __exit__(self, *_: object) -> None:
        self.peak_bytes = self._statistics.max_memory_allocated(self._device) - self._base


class Meter(Protocol):
    """``peak_bytes`` is the most that was alive at once while it was entered."""

    @property
    def peak_bytes(self) -> int: ...

    def __enter__(self) -> Meter: ...

    def __exit__(self, *_: Any) -> Any: ...


class PeakMeter:
    """The most bytes of intermediates that any step so far has had alive at once.

    A step is (tokens, rows of logits); one that is no larger in both than a step already measured
    is not watched again. ``meter`` is the device's.
    """

    def __init__(self, meter: Callable[[], Meter] = LiveBytes) -> None:
        self.peak_bytes = 0
        self._meter = meter
        self._measured: list[tuple[int, int]] = []

    @contextmanager
    def watch(self, tokens: int, logit_rows: int, carried: int = 0) -> Iterator[None]:
        """Measures the block where it can raise the peak. ``carried`` are bytes of intermediates
        that an earlier block of the same step left for this one."""
        if any(tokens <= most and logit_rows <= rows for most, rows in self._measured):
            yield
            return
        with self._meter() as meter:
            yield
        self._measured.append((tokens, logit_rows))
        self.peak_bytes = max(self.peak_bytes, carried + meter.peak_bytes)


def storage_bytes(tensor: torch.Tensor | None) -> int:
    """What a tensor holds, or the tensor that it is a part of."""
    return 0 if tensor is None else tensor.untyped_storage().nbytes()


def _tensors(tree: Any) -> Iterator[torch.Tensor]:
    """Those of an operation's arguments or results: tensors, and sequences and mappings of them."""
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, dict):
        for value in tree.values():
            yield from _tensors(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from _tensors(value)
