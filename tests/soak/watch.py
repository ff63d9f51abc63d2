"""What a server holds, read from outside: memory, descriptors, processes, gauges, counts."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from tests.e2e.server_process import SAMPLE, ServerProcess, http_get
from tests.living import is_running

_ANONYMOUS = re.compile(r"^Anonymous:\s+(\d+) kB$", re.MULTILINE)
_LISTEN = "0A"
# What requests hold now, which is nothing at rest; of the two below in these states only.
_GAUGES = (
    "quire_requests_running",
    "quire_requests_waiting",
    "quire_sequences_running",
    "quire_sequences_waiting",
    "quire_waiting_prompt_tokens",
    "quire_queue_age_seconds",
    "quire_kv_cache_usage_ratio",
    "quire_api_memory_bytes",
)
_STATES = {"quire_kv_blocks": ("live",), "quire_kv_tokens": ("reserved", "filled")}


def anonymous_bytes(pid: int) -> int:
    """What the process wrote and keeps: pages that belong to it alone, as the kernel counts them.
    Not the resident set, which grows as code is read from files."""
    (kib,) = _ANONYMOUS.findall(Path(f"/proc/{pid}/smaps_rollup").read_text())
    return int(kib) * 1024


def descriptors(pid: int) -> list[str]:
    """What each open descriptor is, without the numbers of sockets and pipes.

    A pipe whose other end a living child has is not among them: processes that render templates
    come and go, each with its pipes. One that is left of a process that is gone is.
    """
    shared = {link for child in descendants(pid) for link in _links(child) if "pipe:" in link}
    return sorted(re.sub(r"\d+", "N", link) for link in _links(pid) if link not in shared)


def _links(pid: int) -> list[str]:
    found = []
    for one in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.append(os.readlink(one))
        except OSError:
            continue  # closed meanwhile
    return found


def connections(server: ServerProcess) -> int:
    """How many connections the server has accepted and not closed, by the kernel's table."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    here = f":{server.port:04X}"
    return sum(row[1].endswith(here) and row[3] != _LISTEN and row[9] != "0" for row in rows)


def descendants(pid: int) -> list[int]:
    """Children and theirs, that live."""
    found: list[int] = []
    for thread in Path(f"/proc/{pid}/task").iterdir():
        for child in map(int, (thread / "children").read_text().split()):
            if is_running(child):
                found += [child, *descendants(child)]
    return found


def samples(server: ServerProcess) -> list[tuple[str, str, float]]:
    """Each sample of /metrics: name, labels, value."""
    text = http_get(server.base_url + "/metrics").text
    return [(name, labels, float(value)) for name, labels, value in SAMPLE.findall(text)]


def raised_gauges(server: ServerProcess) -> dict[str, float]:
    """The gauges of what requests hold that are not 0."""
    return {
        f"{name}{{{labels}}}": value
        for name, labels, value in samples(server)
        if value
        and (
            name in _GAUGES or any(f'state="{state}"' in labels for state in _STATES.get(name, ()))
        )
    }


def outcomes(server: ServerProcess) -> tuple[dict[str, int], dict[str, int]]:
    """quire_requests_total by outcome, and by route."""
    by_outcome: dict[str, int] = {}
    by_route: dict[str, int] = {}
    for name, labels, value in samples(server):
        if name == "quire_requests_total":
            found = dict(re.findall(r'(\w+)="([^"]*)"', labels))
            for sums, key in ((by_outcome, found["outcome"]), (by_route, found["route"])):
                sums[key] = sums.get(key, 0) + int(value)
    return by_outcome, by_route


def logged_requests(log: Path) -> tuple[int, int]:
    """Lines of finished requests in a JSON log, and how many requests they are of."""
    lines = [line for line in log.read_text().splitlines() if '"quire.request"' in line]
    return len(lines), len({json.loads(line)["request_id"] for line in lines})
