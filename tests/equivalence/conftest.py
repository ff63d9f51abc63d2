"""Lets these tests use the helpers of tests/execution and the oracle of tests/parity."""

from __future__ import annotations

import sys
from pathlib import Path

for folder in ("execution", "parity"):
    sys.path.insert(0, str(Path(__file__).parent.parent / folder))
