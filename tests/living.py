"""Whether a process lives."""

from __future__ import annotations

import os
import select
from pathlib import Path


def is_running(pid: int) -> bool:
    """False for a process that is gone, or dead and not yet reaped by its new parent."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def has_ended(pid: int, seconds: float = 30) -> bool:
    """Whether a process that need not be a child has ended; it is given some time to."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([process], [], [], seconds)[0])
    finally:
        os.close(process)
