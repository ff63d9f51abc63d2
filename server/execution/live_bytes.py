"""Measures the bytes of intermediate tensors alive at once, by watching every operation.

A dispatch mode sees each tensor that an operation makes; its storage is held weakly, so what is
alive is known without keeping anything alive. Memory that an operation takes and gives back inside
itself is not seen. Watching costs some microseconds an operation, so a runner watches the largest
step it has met and not every one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


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
        self._live: dict[StorageWeakRef, int] = {}
        self._foreign: set[StorageWeakRef] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        for tensor in _tensors((args, kwargs)):
            ref = _ref(tensor.untyped_storage())
            if ref not in self._live:
                self._foreign.add(ref)  # weights, buffers: made before or outside
        out = func(*args, **(kwargs or {}))
        self._forget()
        for tensor in _tensors(out):
            self._see(tensor.untyped_storage())
        self.peak_bytes = max(self.peak_bytes, sum(self._live.values()))
        return out

    def _see(self, storage: torch.UntypedStorage) -> None:
        ref = _ref(storage)
        if ref in self._live or ref in self._foreign:
            return
        self._live[ref] = storage.nbytes()
        if storage.nbytes() >= self._record_above:
            self.made.append(storage.nbytes())

    def _forget(self) -> None:
        """Drops what has died; an address may be used again for something new."""
        for ref in [ref for ref in self._live if _expired(ref)]:
            del self._live[ref]
        self._foreign = {ref for ref in self._foreign if not _expired(ref)}


class PeakMeter:
    """The most bytes of intermediates that any step so far has had alive at once.

    A step is (tokens, rows of logits); one that is no larger in both than a step already measured
    is not watched again.
    """

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._measured: list[tuple[int, int]] = []

    @contextmanager
    def watch(self, tokens: int, logit_rows: int) -> Iterator[None]:
        """Measures the block where it can raise the peak."""
        if any(tokens <= most and logit_rows <= rows for most, rows in self._measured):
            yield
            return
        with LiveBytes() as live:
            yield
        self._measured.append((tokens, logit_rows))
        self.peak_bytes = max(self.peak_bytes, live.peak_bytes)


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _ref(storage: torch.UntypedStorage) -> StorageWeakRef:
    return StorageWeakRef(storage)  # type: ignore[no-untyped-call]


def _expired(ref: StorageWeakRef) -> bool:
    return bool(ref.expired())  # type: ignore[no-untyped-call]
