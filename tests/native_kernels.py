"""Whether native kernels are there to be tested: CI builds them, elsewhere a compiler may lack.

The variable QUIRE_CPU_LEVEL makes every test run that level that does not choose one itself: so a
level is tested that is not the default yet (kernels/cpu/native/tested_levels.toml).
"""

from __future__ import annotations

import os

import pytest

from kernels.cpu.native.levels import choose_level, chosen_level
from kernels.cpu.native.library import NativeUnavailable, library
from server.memory.backends.native_cpu import NATIVE
from server.memory.backends.torch_cpu import TORCH


def why_no_native() -> str | None:
    """Raises NativeUnavailable in CI where they were not built."""
    try:
        library()
    except NativeUnavailable as error:
        if os.environ.get("CI"):
            raise
        return str(error)
    try:
        choose_level(os.environ.get("QUIRE_CPU_LEVEL"))
        chosen_level()
    except NativeUnavailable as error:
        return str(error)
    return None


def native_is_there() -> bool:
    """Raises NativeUnavailable in CI where they were not built."""
    return why_no_native() is None


needs_native = pytest.mark.skipif(
    not native_is_there(), reason=f"no native kernels: {why_no_native()}"
)

ON_A_CPU = NATIVE if native_is_there() else TORCH  # the backend that serves there by itself
