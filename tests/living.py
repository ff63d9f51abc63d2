"""Whether a process lives."""

from __future__ import annotations

from pathlib import Path


def is_running(pid: int) -> bool:
    """False for a process that is gone, or dead and not yet reaped by its new parent."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"
