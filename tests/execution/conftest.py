"""Lets these tests use the workloads and checks of tests/equivalence."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "equivalence"))
sys.path.insert(0, str(Path(__file__).parent.parent / "parity"))
