"""The library as it is found: its structures, its levels, and why there is none."""

from __future__ import annotations

import ctypes
import ctypes.util
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernels.cpu.native import levels as choice
from kernels.cpu.native import library as native
from kernels.cpu.native.library import NativeUnavailable
from kernels.cpu.native.structs import ARGUMENTS, Call, Operation, Step


@pytest.fixture
def found_anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """The library is looked for again, inside and afterwards."""
    native.library.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    native.library.cache_clear()


def test_every_structure_has_the_size_that_the_library_says(native_level: str) -> None:
    assert set(ARGUMENTS) == set(Operation)
    sizes = {-2: Step, -1: Call, **{int(one): struct for one, struct in ARGUMENTS.items()}}
    for operation, struct in sizes.items():
        assert native.library().qr_struct_bytes(operation) == ctypes.sizeof(struct), struct
    assert native.library().qr_struct_bytes(len(Operation)) == 0  # there are no more


def test_levels_that_there_are_not(native_level: str) -> None:
    with pytest.raises(NativeUnavailable, match=r"there is no level .best.; there are .*portable"):
        native.level("best")
    with pytest.raises(NativeUnavailable, match="there is no level 'best'"):
        choice.choose_level("best")
    assert choice.chosen_level().name == native_level
    assert native.levels()[-1] == "portable"
    assert native.levels_here()[-1] == "portable"


def test_a_missing_file(found_anew: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found_anew.setattr(native, "FILE", tmp_path / "quire_cpu.so")
    for ask in (native.library, native.levels, native.levels_here):
        with pytest.raises(NativeUnavailable, match=r"not built: .* no C compiler .*install quire"):
            ask()
    with pytest.raises(NativeUnavailable, match="not built"):
        choice.choose_level("portable")


def test_a_file_that_is_no_library(found_anew: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wrong = tmp_path / "quire_cpu.so"
    for content in (b"", b"no library", b"\x7fELF\x02\x01\x01" + bytes(64)):
        wrong.write_bytes(content)
        found_anew.setattr(native, "FILE", wrong)
        with pytest.raises(
            NativeUnavailable, match=r"its kernels cannot be loaded: .*quire_cpu.so"
        ):
            native.library()


def test_another_library(found_anew: pytest.MonkeyPatch) -> None:
    maps = Path("/proc/self/maps").read_text().splitlines()
    name = next((line.split()[-1] for line in maps if "/libc.so" in line), None)
    if name is None:
        pytest.skip("this process has no libc.so to take for another library")
    found_anew.setattr(native, "FILE", Path(name))
    with pytest.raises(NativeUnavailable, match="of another version: there is no qr_level_name"):
        native.library()


def test_a_library_with_other_structures(found_anew: pytest.MonkeyPatch, native_level: str) -> None:
    class Longer(ctypes.Structure):
        _fields_ = (*Call._fields_, ("more", ctypes.c_int64))

    native.library.cache_clear()
    found_anew.setattr(native, "Call", Longer)
    with pytest.raises(NativeUnavailable, match="of another version: Longer differs"):
        native.library()
