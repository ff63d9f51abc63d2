"""malloc in the API process: what was freed goes back to the kernel.

glibc keeps freed memory for the next who asks, and after one large block is freed it keeps blocks
of that size too: tokenising 4 MiB of text left 400 to 700 MiB with the process for ever. Two
remedies, which were measured: a fixed threshold gives every large block a mapping of its own, which
goes with it (bodies, texts); malloc_trim gives back the free pages between small blocks, all but 20
to 80 MiB of these, that the ids themselves took. It walks the heap: 150 ms for 500 MiB, less for
less, outside of the interpreter's lock but inside malloc's, so it is done when much was freed, and
at most once a second.

Elsewhere than in glibc both do nothing.
"""

from __future__ import annotations

import asyncio
import ctypes
from collections.abc import Callable

MMAP_THRESHOLD = 256 * 1024  # bytes; a number of our own also keeps malloc from raising it
TRIM_BYTES = 16 * 1024 * 1024  # freed since the last time
TRIM_EVERY_S = 1.0
_M_MMAP_THRESHOLD = -3


def fix_mmap_threshold() -> bool:
    """Large blocks have mappings of their own from now on. False where malloc has no such."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_M_MMAP_THRESHOLD, MMAP_THRESHOLD))


def trim_malloc() -> None:
    """Gives back the free pages of every arena. The interpreter goes on meanwhile."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


class Trimmer:
    """Trims in a thread, a while after much was freed. Lives in one event loop."""

    def __init__(
        self, trim: Callable[[], None] = trim_malloc, every_s: float = TRIM_EVERY_S
    ) -> None:
        self._trim = trim
        self._every_s = every_s
        self._freed = 0
        self._is_due = False

    def freed(self, nbytes: int) -> None:
        """So many bytes were let go, or will be within the second."""
        self._freed += nbytes
        if self._freed >= TRIM_BYTES and not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_later(self._every_s, self._start)

    def _start(self) -> None:
        """What is freed from now on counts for the next time."""
        self._freed = 0
        loop = asyncio.get_running_loop()
        loop.run_in_executor(None, self._trim).add_done_callback(self._done)

    def _done(self, trimmed: asyncio.Future[None]) -> None:
        self._is_due = False
        self.freed(0)
