"""The control groups that this process is in: what a container's limits are written in."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def cgroup_folders(
    controller: str, proc: Path = PROC, cgroups: Path = CGROUPS
) -> Iterator[tuple[int, Path]]:
    """(version, folder) of every group above this process that ``controller`` may limit, the
    innermost first. Version 1 has a hierarchy for each controller."""
    for line in (proc / "self" / "cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            version, base = 2, cgroups
        elif controller in controllers.split(","):
            version, base = 1, cgroups / controller
        else:
            continue
        folder = base / path.lstrip("/")
        for level in (folder, *folder.parents):
            if level == base.parent:
                break
            yield version, level


def available_cores(proc: Path = PROC, cgroups: Path = CGROUPS) -> int:
    """Cores that this process may use: of its affinity mask, and not more than a quota of processor
    time keeps busy. A thread beyond the quota would be stopped in the midst of a step, and the
    others would wait for it."""
    cores = len(os.sched_getaffinity(0))
    try:
        quotas = [_quota(*found) for found in cgroup_folders("cpu", proc, cgroups)]
    except OSError:
        return cores  # a system without control groups
    return max(1, int(min([cores, *(quota for quota in quotas if quota is not None)])))


def _quota(version: int, folder: Path) -> float | None:
    """Cores' worth of processor time; None where there is no bound, or no such level here."""
    try:
        if version == 2:
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text().strip()
    except OSError:
        return None
    return None if quota in ("max", "-1") else int(quota) / int(period)
