"""Whether native kernels are there to be tested: CI builds them, elsewhere a compiler may lack."""

from __future__ import annotations

import os

import pytest

from kernels.cpu.native.library import NativeUnavailable, levels_here


def native_is_there() -> bool:
    """Raises NativeUnavailable in CI where they are not."""
    try:
        return bool(levels_here())
    except NativeUnavailable:
        if os.environ.get("CI"):
            raise
        return False


needs_native = pytest.mark.skipif(not native_is_there(), reason="native kernels are not built here")
