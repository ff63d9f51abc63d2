"""Levels that this processor does not run, compiled and emulated.

driver.c runs every operation on fixed inputs. What this machine's own levels print is recorded, and
every level that fuses multiply and add must print the same, to the bit. No record of
kernels/cpu/native/tested_levels.toml comes from here: an emulator is no processor.
"""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path

import pytest

from kernels.cpu.native import library
from tests.kernels.native.compiling import (
    compile_objects,
    compile_one,
    link_driver,
    results_here,
    run_driver,
)
from tests.native_kernels import needs_native

FUSED, LEAST_CASES = "avx2", 120
CROSS, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"
PACKAGES = "gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user"
BY_HAND = Path(__file__).with_name("avx512_by_hand.h")

pytestmark = [
    needs_native,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="compares with an x86-64"),
]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """By level, each case's hash."""
    if shutil.which("gcc") is None:
        pytest.skip("there is no gcc")
    if FUSED not in library.levels_here():
        pytest.skip(f"this processor does not run the level {FUSED}, which others are held to")
    return results_here(tmp_path_factory.mktemp("driver"))


def test_the_cases_tell_levels_apart(here: dict[str, dict[str, str]]) -> None:
    fused, rounded = here[FUSED], here["portable"]
    assert len(fused) >= LEAST_CASES and set(fused) == set(rounded)
    assert sum(rounded[case] != made for case, made in fused.items()) > LEAST_CASES / 2


def test_an_aarch64_computes_the_same_bits(here: dict[str, dict[str, str]], tmp_path: Path) -> None:
    missing = [name for name in (CROSS, EMULATOR) if shutil.which(name) is None]
    if missing:
        if os.environ.get("CI"):
            pytest.fail(f"CI must try AArch64: {', '.join(missing)} not found")
        pytest.skip(f"{', '.join(missing)} not found; apt-get install {PACKAGES}")
    objects = compile_objects(CROSS, tmp_path, "aarch64")
    driver = link_driver(CROSS, tmp_path, [*objects, "-static", "-pthread", "-lm"])
    emulated = run_driver([EMULATOR, driver])
    assert set(emulated) == {"neon", "portable"}
    assert emulated["neon"] == here[FUSED]
    assert emulated["portable"] == here["portable"]


def test_avx512_computes_the_same_bits(here: dict[str, dict[str, str]], tmp_path: Path) -> None:
    """Its own file, over instructions written by hand for AVX2."""
    flags = ("-mavx2", "-mfma", "-mf16c", "-include", str(BY_HAND))
    objects = [compile_one("gcc", tmp_path, "avx512", *flags), compile_one("gcc", tmp_path, "pool")]
    driver = link_driver("gcc", tmp_path, [*objects, "-pthread", "-lm"], "-DONLY=qr_avx512")
    assert run_driver([driver]) == {"avx512": here[FUSED]}
