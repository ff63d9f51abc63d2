"""What the kernel and malloc say about this process's memory, read at one moment.

The resident set of a process is, page by page, one of

    loaded code      file-backed pages of the mappings of executables and shared libraries
    anonymous        everything that the process wrote: heap, malloc's own mappings, Python's
                     arenas, thread stacks, copied pages of .data
    other mapped     file-backed or shared pages of anything else

read from /proc/self/smaps, which walks the page tables and is exact (the counters in
/proc/self/status may lag by some hundred KiB a core). malloc's free memory is *not* mallinfo2's
``fordblks``: that counts free bytes whether or not a page is behind them. What is resident and
free is the resident size of the heap minus the bytes in use in it. Chunks above malloc's threshold
have a mapping of their own and return to the kernel when they are freed, so they hold no slack.
This holds for one arena, so the engine process limits malloc to one (``limit_malloc_arenas``);
bytes in a second arena would show as unaccounted.

Sizes are bytes. Linux only.
"""

from __future__ import annotations

import ctypes
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import cast

from server.cgroups import CGROUPS, PROC, cgroup_folders

_M_ARENA_MAX = -8
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One reading of this process and of the machine below it."""

    total: int  # the smaller of RAM and the cgroup's limit
    free: int  # of total: what could be had without taking from a process
    resident: int
    code: int  # loaded code
    anonymous: int
    other_mapped: int
    heap_resident: int  # part of anonymous: malloc's arena
    heap_in_use: int
    took_s: float

    @property
    def heap_slack(self) -> int:
        """Resident in malloc's arena and not in use."""
        return max(0, self.heap_resident - self.heap_in_use)

    @property
    def own(self) -> int:
        """What the process itself wrote or mapped, less what malloc could give out again."""
        return self.anonymous + self.other_mapped - self.heap_slack


class _MallInfo(ctypes.Structure):
    """struct mallinfo2 of glibc 2.33 and later."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    )


def limit_malloc_arenas() -> bool:
    """Keeps malloc to one arena. Call before any thread starts. False where malloc has no such."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_M_ARENA_MAX, 1))


def take(proc: Path = Path("/proc")) -> Snapshot:
    """Reads everything once. Costs some milliseconds: the kernel walks the page tables."""
    started = time.perf_counter()
    in_use = _heap_in_use()
    pages = _read_smaps((proc / "self" / "smaps").read_bytes())
    total, free = machine_memory(proc)
    return Snapshot(
        total=total,
        free=free,
        resident=pages.resident,
        code=pages.code,
        anonymous=pages.anonymous,
        other_mapped=pages.resident - pages.code - pages.anonymous,
        heap_resident=pages.heap,
        heap_in_use=pages.heap if in_use is None else in_use,
        took_s=time.perf_counter() - started,
    )


def machine_memory(proc: Path = PROC, cgroups: Path = CGROUPS) -> tuple[int, int]:
    """(total, free) bytes that this process may use: the tighter of the machine and its cgroup."""
    fields = _key_values((proc / "meminfo").read_text())
    total, free = fields["MemTotal:"] * 1024, fields["MemAvailable:"] * 1024
    for limit, used in _cgroup_limits(proc, cgroups):
        total, free = min(total, limit), min(free, max(0, limit - used))
    return total, free


def process_resident(pid: int | None = None) -> int:
    """Resident bytes of a process, this one by default; 0 when it is gone."""
    try:
        text = Path(f"/proc/{'self' if pid is None else pid}/statm").read_text()
    except OSError:
        return 0
    return int(text.split()[1]) * _PAGE


@dataclass(frozen=True, slots=True)
class _Pages:
    resident: int
    code: int
    anonymous: int
    heap: int


# A mapping of /proc/PID/smaps: a header line with its range, rights and path, then a line a figure.
_MAPPING = re.compile(
    rb"^[0-9a-f]+-[0-9a-f]+ (?P<rights>\S+) \S+ \S+ \S+ *(?P<path>.*)\n"
    rb"(?:.+\n)*?Rss: +(?P<resident>\d+) kB\n"
    rb"(?:.+\n)*?Anonymous: +(?P<written>\d+) kB",
    re.MULTILINE,
)


def _read_smaps(text: bytes) -> _Pages:
    """Adds up the mappings: a thousand of two dozen lines each, so one expression reads them."""
    resident = anonymous = heap = 0
    file_pages: dict[bytes, int] = {}
    code_paths: set[bytes] = set()
    for rights, path, rss_kib, written_kib in _MAPPING.findall(text):
        if path and b"x" in rights:
            code_paths.add(path)
        rss, written = int(rss_kib), int(written_kib)
        resident += rss
        anonymous += written
        if path == b"[heap]":
            heap += rss
        if rss != written:
            file_pages[path] = file_pages.get(path, 0) + rss - written
    code = sum(kib for name, kib in file_pages.items() if name in code_paths)
    return _Pages(resident * 1024, code * 1024, anonymous * 1024, heap * 1024)


def _heap_in_use() -> int | None:
    """Bytes in use in malloc's arena, or None where malloc does not say."""
    mallinfo = _mallinfo()
    return None if mallinfo is None else int(mallinfo().uordblks)


@cache
def _mallinfo() -> Callable[[], _MallInfo] | None:
    """glibc's mallinfo2. Looked up once: every handle makes classes, garbage in a cycle."""
    function = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if function is not None:
        function.restype = _MallInfo
    return cast("Callable[[], _MallInfo] | None", function)


def _cgroup_limits(proc: Path, cgroups: Path) -> Iterator[tuple[int, int]]:
    """(limit, used) of every memory cgroup above this process, version 1 or 2."""
    names = {
        1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
        2: ("memory.max", "memory.current", ""),
    }
    for version, folder in cgroup_folders("memory", proc, cgroups):
        limit = _cgroup_limit(folder, *names[version])
        if limit is not None:
            yield limit


def _cgroup_limit(folder: Path, limit: str, usage: str, prefix: str) -> tuple[int, int] | None:
    """(limit, used without file pages, which are reclaimed first), or None where there is none."""
    try:
        text = (folder / limit).read_text().strip()
        if text == "max":
            return None
        used = int((folder / usage).read_text())
        stat = _key_values((folder / "memory.stat").read_text())
    except OSError:
        return None  # no such level in this container
    cached = sum(stat.get(f"{prefix}{name}_file", 0) for name in ("active", "inactive"))
    return int(text), max(0, used - cached)


def _key_values(text: str) -> dict[str, int]:
    pairs = (line.split()[:2] for line in text.splitlines() if line.strip())
    return {key: int(value) for key, value in pairs}
