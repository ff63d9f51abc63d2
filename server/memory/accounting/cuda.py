"""A GPU as a device: the driver's figures beside those of torch's allocator.

    total    = free + kept by the driver + other processes + ours
    ours     = reserved by the allocator + runtime [+ what is unaccounted]
    reserved = tensors + captured graphs + allocator_slack

Where the driver lists processes and ours is among them, every line but ``unaccounted`` is measured
by itself. What this process takes from the driver behind the allocator's back is in no line, so it
is unaccounted.

Where ours is not listed (in most containers) one cannot tell another process's bytes from what we
took behind the allocator's back. Then ``runtime`` is what the context took when it was made, the
difference of two readings that were each repeated until they were equal, ``other_processes`` is the
remainder, and both are marked as estimates.

``runtime`` is read twice: with the context and the libraries' handles (its base), and when the
engine stands ready, which adds kernels that were loaded and graphs that were made. From then on
only the capture of another graph moves it, so that growth is seen. Torch-free: tests hold it
against a simulated device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from server.memory.accounting.cuda_allocator import AllocatorState
from server.memory.accounting.nvml import DeviceUse
from server.memory.accounting.reading import AllocatorReading, DeviceReading
from server.memory.kinds import MemoryKind

_MOST_READINGS = 20  # until two in a row are equal
T = TypeVar("T")


def steady(read: Callable[[], T]) -> T:
    """Reads until two readings in a row are equal; the last one where none ever are."""
    last = read()
    for _ in range(_MOST_READINGS):
        now = read()
        if now == last:
            break
        last = now
    return last


class CudaMemory:
    """Implements server.memory.accounting.reading.DeviceMemory.

    To be made when the context and the libraries' handles exist and no tensor of ours does: what
    the allocator has handed out by then is the libraries' workspace.

    Args:
        use: the driver's figures now.
        allocator: the allocator's now, from one snapshot.
        before: the driver's figures from before the context; None where they could not be read.
        pid: this process's id.
    """

    def __init__(
        self,
        use: Callable[[], DeviceUse],
        allocator: Callable[[], AllocatorState],
        *,
        before: DeviceUse | None,
        pid: int,
    ) -> None:
        self._use = use
        self._allocator = allocator
        state, after = allocator(), steady(use)
        self._pid = _own_pid(before, after, pid)
        self._libraries = state.in_use
        self._base = self._first_runtime(before, after, state)
        self._loaded = 0

    def settle(self) -> None:
        """The engine is built: what the driver has loaded for it since belongs to the runtime.

        Only where the driver lists this process; a difference over so long a time would hold other
        processes' changes.
        """
        outside = self._outside_allocator()
        if outside is not None:
            self._loaded = max(0, outside - self._base)

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Around what makes the driver take memory for us later on, such as capturing a graph:
        what came outside of the allocator meanwhile belongs to the runtime. As ``settle``, only
        where the driver lists this process."""
        before = self._outside_allocator()
        yield
        after = self._outside_allocator()
        if before is not None and after is not None:
            self._loaded += max(0, after - before)

    def _outside_allocator(self) -> int | None:
        own = self._own(self._use())
        return None if own is None else own - self._allocator().reserved

    def read(self) -> DeviceReading:
        use, state = self._use(), self._allocator()
        runtime = self._base + self._loaded
        listed = self._own(use)
        own = state.reserved + runtime if listed is None else listed
        others = _remainder(use, own) if listed is None else self._others(use)
        return DeviceReading(
            total=use.total,
            resident=own,
            kinds={
                MemoryKind.GRAPHS: state.graphs,
                MemoryKind.WORKSPACE: self._libraries,
                MemoryKind.ALLOCATOR_SLACK: state.slack,
                MemoryKind.RUNTIME: runtime,
                MemoryKind.OTHER_PROCESSES: others,
                MemoryKind.FREE: use.free,
            },
            parts={
                MemoryKind.WORKSPACE: {"libraries": self._libraries},
                MemoryKind.ALLOCATOR_SLACK: {
                    "free": state.free,
                    "pending": state.pending,
                    "rounding": state.rounding,
                },
                MemoryKind.RUNTIME: {"code": self._loaded, "base": self._base},
                MemoryKind.OTHER_PROCESSES: {"driver": use.driver},
            },
            estimated=self._estimated(listed),
            allocator=AllocatorReading(state.reserved, state.in_use, state.largest_free),
            in_tensors=state.in_use - self._libraries,
        )

    def _estimated(self, listed: int | None) -> frozenset[MemoryKind]:
        """``listed`` is what the driver lists for this process now."""
        marks = {
            MemoryKind.RUNTIME: self._pid is None,
            MemoryKind.OTHER_PROCESSES: listed is None,
        }
        return frozenset(kind for kind, is_estimate in marks.items() if is_estimate)

    def _first_runtime(
        self, before: DeviceUse | None, after: DeviceUse, state: AllocatorState
    ) -> int:
        own = self._own(after)
        if own is not None:
            return max(0, own - state.reserved)
        free_before = after.total - after.driver if before is None else before.free
        return max(0, free_before - after.free - state.reserved)

    def _own(self, use: DeviceUse) -> int | None:
        """What the driver lists for this process; None where it does not."""
        if self._pid is None or use.processes is None:
            return None
        return use.processes.get(self._pid)

    def _others(self, use: DeviceUse) -> int:
        listed = use.processes or {}
        return use.driver + sum(used for pid, used in listed.items() if pid != self._pid)


def _remainder(use: DeviceUse, own: int) -> int:
    return max(0, use.total - use.free - own)


def _own_pid(before: DeviceUse | None, after: DeviceUse, pid: int) -> int | None:
    """This process's id as the driver numbers it; None where it cannot be told.

    In a container the driver may list processes by the host's numbers. Then ours is the one that
    appeared as the context was made, where only one did.
    """
    listed = after.processes or {}
    known = None if before is None else before.processes
    if known is None:
        return pid if pid in listed else None
    new = [one for one in listed if one not in known]
    if pid in new:
        return pid
    return new[0] if len(new) == 1 else None
