"""The list of faults fits the code as it is; running it is `make mutants`, not CI."""

from __future__ import annotations

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
    assert mutants.outcome_of(seen, tmp_path) == "killed"
    assert mutants.outcome_of(unseen, tmp_path) == "survived"
    assert "return 2 * n" in (tmp_path / "code_.py").read_text()
    twice = Fault("a/3", "code_.py", "n", "m", "it is not one place", ("test_code.py",))
    with pytest.raises(ValueError, match="stands 3 times"):
        mutants.outcome_of(twice, tmp_path)
