"""The most bytes that a stretch of work really took, from the kernel's high-water mark.

Watching tensors from outside sees what operations make and not what they hold inside themselves.
The resident set sees everything; what spoils it is malloc, which keeps what was freed. So from
``exact_malloc`` on, every chunk of 64 KiB and more has a mapping of its own, which goes back to the
kernel when it is freed. That costs page faults, so a server does not do it.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path

_M_MMAP_THRESHOLD, _M_MMAP_MAX = -3, -4
_PROC = Path("/proc/self")


def exact_malloc() -> None:
    """From now on, for the rest of this process."""
    libc = ctypes.CDLL(None)
    if not (libc.mallopt(_M_MMAP_THRESHOLD, 64 << 10) and libc.mallopt(_M_MMAP_MAX, 1 << 20)):
        raise RuntimeError("this malloc cannot be told when to use mappings of their own")


def resident_peak(work: Callable[[], object]) -> int:
    """Bytes that ``work`` had more than there were before it, at the most."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    (_PROC / "clear_refs").write_text("5")  # the mark starts from here
    before = _status("VmRSS")
    work()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    for line in (_PROC / "status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"the kernel does not tell {name}")
