"""The server of the end-to-end tests is the one that is scraped here."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
for folder in (ROOT, ROOT / "tests" / "e2e"):  # deploy/ is no part of the installed package
    sys.path.insert(0, str(folder))
