"""The whole engine on a real GPU. Without one every test here is skipped, and says why."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    here = Path(__file__).parent
    skip = pytest.mark.skip(reason="needs a GPU that torch can use")
    for item in items:
        if here in item.path.parents:
            item.add_marker(skip)
