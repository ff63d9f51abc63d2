"""The list of faults fits the code as it is; running it is `make mutants`, not CI."""

from __future__ import annotations

import fcntl
from collections import Counter
from pathlib import Path

import pytest

from tests.mutants import __main__ as mutants
from tests.mutants.faults import ROOT, Fault, read_faults

FAULTS = read_faults()


def test_there_are_enough_in_every_room() -> None:
    rooms = Counter(fault.room for fault in FAULTS)
    assert len(FAULTS) >= 60 and min(rooms.values()) >= 5
    assert set(rooms) >= {
        *("api", "text", "output", "engine", "ipc", "execution", "memory", "plan", "metrics"),
        *("weights", "kernels", "loadtest", "deploy"),
    }


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_fits_one_place_and_its_tests_are_there(fault: Fault) -> None:
    text = (ROOT / fault.file).read_text(encoding="utf-8")
    planted = fault.planted(text)
    assert planted != text
    if fault.file.endswith(".py"):
        compile(planted, fault.file, "exec")
    assert fault.sees and fault.tests
    for argument in fault.tests:
        if argument.startswith("tests/"):
            assert (ROOT / argument.partition("::")[0]).exists(), argument


def test_a_fault_that_a_test_sees_is_killed_and_another_survives(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text("def double(n):\n    return 2 * n\n")
    test = tmp_path / "test_code.py"
    test.write_text("from code_ import double\n\ndef test_it():\n    assert double(3) == 6\n")
    (tmp_path / "code.py").rename(tmp_path / "code_.py")
    seen = Fault("a/1", "code_.py", "2 * n", "2 + n", "sums", ("test_code.py",))
    unseen = Fault("a/2", "code_.py", "2 * n", "n * 2", "nothing", ("test_code.py",))
    outcome, run = mutants.outcome_of(seen, tmp_path)
    assert outcome == "killed" and run.failed == "FAILED test_code.py::test_it"
    assert mutants.outcome_of(unseen, tmp_path)[0] == "survived"
    assert "return 2 * n" in (tmp_path / "code_.py").read_text()
    twice = Fault("a/3", "code_.py", "n", "m", "it is not one place", ("test_code.py",))
    with pytest.raises(ValueError, match="stands 3 times"):
        mutants.outcome_of(twice, tmp_path)


def test_a_fault_that_never_ends_is_killed_by_time_with_what_it_started(tmp_path: Path) -> None:
    (tmp_path / "code_.py").write_text("PAUSE = 0\n")
    held = tmp_path / "held"
    (tmp_path / "child.py").write_text(
        "import code_, fcntl, time\n\n"
        f"file = open({str(held)!r}, 'w')\nfcntl.flock(file, fcntl.LOCK_EX)\n"
        "time.sleep(code_.PAUSE)\n"
    )
    (tmp_path / "test_endless.py").write_text(
        "import subprocess, sys\n\ndef test_it():\n"
        "    subprocess.run([sys.executable, 'child.py'], check=True)\n"
    )
    fault = Fault("a/1", "code_.py", "PAUSE = 0", "PAUSE = 600", "waits", ("test_endless.py",))
    outcome, run = mutants.outcome_of(fault, tmp_path, bound_s=5.0)
    assert outcome == "killed by time" and run.seconds >= 5.0
    with held.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # free once the child is gone


def test_no_two_runs_share_a_copy(tmp_path: Path) -> None:
    with mutants.Copies(2) as copies:
        held = copies.each(lambda _, folder: (folder, (folder / "server").is_dir()), range(6))
        folders = {folder for folder, copied in held if copied}
    assert 1 <= len(folders) <= 2
    assert not any(folder.exists() for folder in folders)
