"""Keeps Python's garbage collector from standing in the way of a measurement."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

_NEVER = 1_000_000_000


@contextlib.contextmanager
def no_full_collections() -> Iterator[None]:
    """Young objects are still collected, which takes microseconds; a full collection walks all that
    a run has kept, tens of milliseconds in which nothing gets its true time. It waits for the end.
    """
    young, middle, old = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(young, middle, _NEVER)
    try:
        yield
    finally:
        gc.set_threshold(young, middle, old)
        gc.unfreeze()
