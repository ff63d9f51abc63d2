"""The whole engine on a real GPU. Without one every test here is skipped, and says why."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).parents[1]
sys.path.insert(0, str(TESTS / "equivalence"))  # whose harness is used here


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    here = Path(__file__).parent
    skip = pytest.mark.skip(reason="needs a GPU that torch can use")
    for item in items:
        if here in item.path.parents:
            item.add_marker(skip)
