"""What the kernel counts of another process's work: is it doing anything at all?

It takes no part of the process itself, so that it tells of one that imports, compiles, or waits for
the pages of a mapped file, none of which could report.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

_PROC = Path("/proc")
_AFTER_NAME = 3  # the field of /proc/PID/stat that follows the process's name, counted from 1
_STAT_FIELDS = (12, 14, 15)  # major page faults; processor time in user and in kernel mode
_IO_FIELDS = ("rchar", "read_bytes")  # bytes read by calls; bytes fetched from storage

Activity = tuple[int, ...]


def activity_of(pid: int) -> Activity:
    """Counters that rise while the process, or one below it, computes or reads.

    Of no unit together: two equal ones say that nothing was done in between. What may not be read
    (/proc/PID/io needs the right to trace) is left out.
    """
    found: list[int] = []
    for one in _with_descendants(pid):
        with contextlib.suppress(OSError):
            found += _stat(one)
        with contextlib.suppress(OSError):
            found += _io(one)
    return tuple(found)


def _stat(pid: int) -> list[int]:
    text = (_PROC / str(pid) / "stat").read_text()
    fields = text.rpartition(")")[2].split()  # a name may have blanks and brackets
    return [int(fields[number - _AFTER_NAME]) for number in _STAT_FIELDS]


def _io(pid: int) -> list[int]:
    lines = (_PROC / str(pid) / "io").read_text().splitlines()
    values = dict(line.split(": ") for line in lines)
    return [int(values[name]) for name in _IO_FIELDS]


def _with_descendants(pid: int) -> list[int]:
    """Those that are alive: compilers, whose work counts for nobody else until they end, and which
    leave it to processes of their own."""
    found = [pid]
    for one in found:  # grows as it goes
        found += [child for child in _children(one) if child not in found]
    return found


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in (_PROC / str(pid) / "task").iterdir():
            found += [int(child) for child in (task / "children").read_text().split()]
    return found
