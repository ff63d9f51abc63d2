"""Cores that a container's quota leaves."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from server.cgroups import available_cores


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of a machine of eight cores, whose process is in the group outer/inner."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    return tmp_path


def cores(root: Path, membership: str = "0::/outer/inner\n") -> int:
    (root / "proc" / "self").mkdir(parents=True, exist_ok=True)
    (root / "proc" / "self" / "cgroup").write_text(membership)
    return available_cores(root / "proc", root / "cgroup")


def write(root: Path, file: str, text: str) -> None:
    path = root / "cgroup" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


def test_without_a_quota_the_mask_counts(root: Path) -> None:
    assert cores(root) == 8
    write(root, "outer/inner/cpu.max", "max 100000")
    assert cores(root) == 8


@pytest.mark.parametrize(
    ("quota", "wanted"),
    [("200000", 2), ("250000", 2), ("350000", 3), ("50000", 1), ("1600000", 8)],
)
def test_whole_cores_of_a_quota_count(root: Path, quota: str, wanted: int) -> None:
    """A thread that has half a core is waited for by all others."""
    write(root, "outer/inner/cpu.max", f"{quota} 100000")
    assert cores(root) == wanted


def test_the_tightest_group_counts(root: Path) -> None:
    write(root, "outer/inner/cpu.max", "600000 100000")
    write(root, "outer/cpu.max", "300000 100000")
    write(root, "cpu.max", "max 100000")
    assert cores(root) == 3


def test_version_1_counts(root: Path) -> None:
    write(root, "cpu/job/cpu.cfs_quota_us", "150000")
    write(root, "cpu/job/cpu.cfs_period_us", "50000")
    assert cores(root, "4:memory:/job\n3:cpu:/job\n") == 3
    write(root, "cpu/job/cpu.cfs_quota_us", "-1")
    assert cores(root, "3:cpu:/job\n") == 8


def test_a_system_without_groups_has_the_mask(root: Path) -> None:
    assert available_cores(root / "none", root / "none") == 8
