"""File descriptors: whether the limit of this process (ulimit -n) has room for its connections."""

from __future__ import annotations

import os
import resource
from dataclasses import dataclass

from server.errors import StartupError

PROBE_CONNECTIONS = 256  # beyond --max-connections, for /health, /ready and /metrics
# What is open at the start, and beside connections later: the listener, the loop's own, the
# engine's sockets, the template's worker, files that are read for a moment, and connections that
# are on their way out.
SPARE = 32
MIN_CONNECTIONS = 4


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """How many connections may be open. ``note`` says why it is less than asked for, or ""."""

    ordinary: int
    probes: int
    note: str = ""


def connection_limits(asked: int) -> ConnectionLimits:
    """Raises this process's soft limit to what ``asked`` connections need, as far as it may be
    raised, and gives what then fits.

    Raises:
        StartupError: not even a handful of connections fits.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = len(os.listdir("/proc/self/fd")) + SPARE
    needed = taken + asked + PROBE_CONNECTIONS
    if _less(soft, needed):
        soft = hard if _less(hard, needed) else needed
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if not _less(soft, needed):
        return ConnectionLimits(asked, PROBE_CONNECTIONS)
    return _fewer(asked, soft, taken, needed)


def _fewer(asked: int, limit: int, taken: int, needed: int) -> ConnectionLimits:
    """What fits where not everything does: a quarter, at most, is for probes."""
    room = limit - taken
    probes = min(PROBE_CONNECTIONS, max(1, room // 4))
    ordinary = room - probes
    advice = f"--max-connections {asked} needs {needed} open files; allow them with ulimit -n"
    if ordinary < min(asked, MIN_CONNECTIONS):
        raise StartupError(
            f"the limit of open files (ulimit -n) is {limit}: {max(0, room)} are left for "
            f"connections, and at least {MIN_CONNECTIONS + 1} are needed. {advice}."
        )
    note = f"the limit of open files (ulimit -n) is {limit}, {advice}"
    return ConnectionLimits(min(asked, ordinary), probes, note if ordinary < asked else "")


def _less(limit: int, wanted: int) -> bool:
    return limit != resource.RLIM_INFINITY and limit < wanted
