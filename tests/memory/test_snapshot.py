"""What is read of the kernel: page kinds of a process, and the tighter of machine and cgroup."""

from __future__ import annotations

from pathlib import Path

from server.memory.accounting.process import machine_memory, process_resident, take

SMAPS = """\
00400000-00500000 r-xp 00000000 08:01 1   /usr/bin/python3
Rss:                 800 kB
Anonymous:             0 kB
00500000-00600000 rw-p 00100000 08:01 1   /usr/bin/python3
Rss:                 100 kB
Anonymous:            60 kB
01000000-02000000 rw-p 00000000 00:00 0                          [heap]
Rss:                5000 kB
Anonymous:          5000 kB
7f0000000000-7f0001000000 r--s 00000000 08:01 2   /data/file with blanks
Rss:                 300 kB
Anonymous:             0 kB
7f0002000000-7f0003000000 rw-p 00000000 00:00 0
Rss:                2000 kB
Anonymous:          2000 kB
7ffd00000000-7ffd00100000 rw-p 00000000 00:00 0                          [stack]
Rss:                  40 kB
Anonymous:            40 kB
"""
MEMINFO = "MemTotal:       16000 kB\nMemFree: 1 kB\nMemAvailable:    9000 kB\nHugePages_Total:  0\n"


def proc(folder: Path, cgroup: str = "0::/\n") -> Path:
    own = folder / "proc" / "self"
    own.mkdir(parents=True)
    (own / "smaps").write_text(SMAPS)
    (own / "cgroup").write_text(cgroup)
    (own.parent / "meminfo").write_text(MEMINFO)
    return own.parent


def test_every_resident_page_is_of_one_kind(tmp_path: Path) -> None:
    snapshot = take(proc(tmp_path))
    kib = 1024
    assert snapshot.resident == 8240 * kib
    assert snapshot.code == 840 * kib  # of a mapped program: its text, and unwritten data
    assert snapshot.anonymous == 7100 * kib
    assert snapshot.other_mapped == 300 * kib  # a mapped data file is no code
    assert snapshot.heap_resident == 5000 * kib
    assert snapshot.resident == snapshot.code + snapshot.anonymous + snapshot.other_mapped
    assert snapshot.own == snapshot.anonymous + snapshot.other_mapped - snapshot.heap_slack


def test_this_process_can_be_read() -> None:
    before = process_resident()
    snapshot = take()
    after = process_resident()  # pages of code that the kernel had taken back may have returned
    assert snapshot.code > 2**20
    assert 0 < snapshot.heap_resident < snapshot.anonymous < snapshot.resident
    assert snapshot.resident < snapshot.total
    assert 0.9 * min(before, after) < snapshot.resident < 1.1 * max(before, after)
    assert process_resident(2**22 + 1) == 0


def test_without_a_cgroup_limit_the_machine_counts(tmp_path: Path) -> None:
    assert machine_memory(proc(tmp_path), tmp_path / "none") == (16000 * 1024, 9000 * 1024)


def test_the_tightest_limit_of_a_version_2_hierarchy_counts(tmp_path: Path) -> None:
    root = tmp_path / "cgroup"
    inner = root / "outer" / "inner"
    inner.mkdir(parents=True)
    write_v2(inner, "max", 5000, 0)
    write_v2(root / "outer", str(8000 * 1024), 6000 * 1024, 1000 * 1024)
    found = machine_memory(proc(tmp_path, "0::/outer/inner\n"), root)
    assert found == (8000 * 1024, 3500 * 1024)  # 8000 - (6000 used - 1500 reclaimable)


def write_v2(folder: Path, limit: str, used: int, inactive_file: int) -> None:
    (folder / "memory.max").write_text(limit + "\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(
        f"anon 1\ninactive_file {inactive_file}\nactive_file {inactive_file // 2}\n"
    )


def test_a_version_1_limit_counts(tmp_path: Path) -> None:
    folder = tmp_path / "cgroup" / "memory" / "job"
    folder.mkdir(parents=True)
    (folder / "memory.limit_in_bytes").write_text(f"{4000 * 1024}\n")
    (folder / "memory.usage_in_bytes").write_text(f"{3000 * 1024}\n")
    (folder / "memory.stat").write_text(
        f"total_inactive_file {400 * 1024}\ntotal_active_file {102400}\n"
    )
    membership = "5:cpu,cpuacct:/job\n4:memory:/job\n"
    found = machine_memory(proc(tmp_path, membership), tmp_path / "cgroup")
    assert found == (4000 * 1024, 1500 * 1024)
