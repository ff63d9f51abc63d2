"""The levels of native kernels, each tried by every test that asks for one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from kernels.cpu.native import levels as choice
from kernels.cpu.native.library import NativeUnavailable, level, levels, levels_here
from tests.native_kernels import native_is_there


def _known() -> tuple[str, ...]:
    return levels() if native_is_there() else ("any level",)


@pytest.fixture(params=_known())
def native_level(request: pytest.FixtureRequest) -> Iterator[str]:
    """One level after the other, as the level that runs; the one before comes back."""
    name: str = request.param
    try:
        here = levels_here()
    except NativeUnavailable as error:
        pytest.skip(f"no native kernels: {error}")
    if name not in here:
        pytest.skip(f"this processor does not run the level {name}: it runs {', '.join(here)}")
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choice, "_chosen", level(name))
        torch.manual_seed(0)
        yield name
    torch.set_num_threads(threads)
