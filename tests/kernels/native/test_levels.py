"""Which level runs: the one that was asked for, or the best with a recorded run of its tests."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernels.cpu.native import levels as choice
from kernels.cpu.native.library import NativeUnavailable, levels, levels_here
from tests.native_kernels import needs_native

pytestmark = needs_native

ROOT = Path(__file__).parents[3]


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A record of the test's own; nothing is chosen."""
    record = tmp_path / "tested_levels.toml"
    monkeypatch.setattr(choice, "RECORD", record)
    monkeypatch.setattr(choice, "_chosen", None)
    choice.tested_levels.cache_clear()
    yield record
    monkeypatch.undo()
    choice.tested_levels.cache_clear()


def line(level: str, machine: str = "here") -> str:
    return (
        f'[[tested]]\nlevel = "{level}"\nmachine = "{machine}"\ndate = 2026-01-02\n'
        'processor = "one"\ntests = "all"\n'
    )


def test_each_line_says_when_where_and_what_passed() -> None:
    lines = choice.tested_levels()
    assert len({(one.level, one.machine) for one in lines}) == len(lines)
    for one in lines:
        assert datetime.date(2026, 11, 30) <= one.date <= datetime.datetime.now().date()
        assert one.processor and one.machine in ("x86_64", "aarch64")
        named = re.findall(r"tests/[\w/.]+", one.tests)
        assert named and all((ROOT / name).exists() for name in named)
        if one.machine == choice.platform.machine():
            assert one.level in levels()


def test_the_default_is_the_best_of_those_on_record(recorded: Path) -> None:
    recorded.write_text(line("portable"))
    assert choice.default_level("here") == "portable"
    choice.tested_levels.cache_clear()
    recorded.write_text("".join(line(name) for name in ("no such level", *reversed(levels()))))
    assert choice.default_level("here") == levels_here()[0]


def test_no_level_is_taken_by_itself_that_was_tested_elsewhere(recorded: Path) -> None:
    recorded.write_text(line("portable", "a machine of another kind"))
    best = levels_here()[0]
    with pytest.raises(
        NativeUnavailable, match=rf"none has been tested on here; QUIRE_CPU_LEVEL={best} tries one"
    ):
        choice.default_level("here")
    with pytest.raises(NativeUnavailable, match="none has been tested"):
        choice.chosen_level()
    choice.choose_level("portable")
    assert choice.chosen_level().name == "portable"


def test_a_level_above_the_machine_is_refused() -> None:
    above = [name for name in levels() if name not in levels_here()]
    if not above:
        pytest.skip("this processor runs every level of the library")
    for name in above:
        with pytest.raises(NativeUnavailable, match=f"does not run its level '{name}'; it runs"):
            choice.choose_level(name)
