"""Kernels on a GPU where there is one, else in Triton's interpreter on the CPU.

The switch must be set before Triton itself is imported: a function is interpreted or compiled for
good when it is decorated, and Triton's own library (tl.sum, tl.max) is decorated on import.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

# The interpreter makes loop bounds of one-element arrays.
_LOOP_BOUNDS = pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")

if not torch.cuda.is_available():
    if "triton" in sys.modules:
        raise RuntimeError("a test module imported Triton at its top: import it in a fixture")
    os.environ["TRITON_INTERPRET"] = "1"

try:
    import triton
except ImportError:
    collect_ignore_glob = ["test_*.py"]  # no Triton for this machine
else:
    if not torch.cuda.is_available():
        triton.knobs.runtime.interpret = True
        from tests.kernels.gpu import interpreted_products, quick_interpreter

        interpreted_products.install()
        quick_interpreter.install()
finally:
    os.environ.pop("TRITON_INTERPRET", None)  # processes that tests start compile kernels


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The sampler's scratch: see sampling_checks.Watch."""
    from tests.kernels.gpu.sampling_checks import Watch

    return Watch(monkeypatch)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--shard",
        default="0/1",
        metavar="INDEX/COUNT",
        help="every COUNT-th test, for several processes on one GPU",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(_LOOP_BOUNDS)
    index, count = map(int, config.getoption("--shard", default="0/1").split("/"))
    kept = items[index::count]
    if len(kept) < len(items):
        config.hook.pytest_deselected(items=list(set(items) - set(kept)))
        items[:] = kept
