"""Kernels on a GPU where there is one, else in Triton's interpreter on the CPU.

The switch must be set before a module of kernels.jit is imported: a kernel is interpreted or
compiled for good when it is decorated.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))  # attention_cases

try:
    import triton
except ImportError:
    collect_ignore_glob = ["test_*.py"]  # no Triton for this machine
else:
    if not torch.cuda.is_available():
        triton.knobs.runtime.interpret = True


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
