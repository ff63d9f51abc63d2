"""Kernels on a GPU where there is one, else in Triton's interpreter on the CPU.

The switch must be set before Triton itself is imported: a function is interpreted or compiled for
good when it is decorated, and Triton's own library (tl.sum, tl.max) is decorated on import.
"""

from __future__ import annotations

import os
import sys

import pytest
import torch

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


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--shard",
        default="0/1",
        metavar="INDEX/COUNT",
        help="every COUNT-th test, for several processes on one GPU",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    index, count = map(int, config.getoption("--shard", default="0/1").split("/"))
    kept = items[index::count]
    if len(kept) < len(items):
        config.hook.pytest_deselected(items=list(set(items) - set(kept)))
        items[:] = kept
