"""What an accountant is given, where a test has no engine; and a module run for its figures."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from server.memory.accounting.accountant import AccountingSources, KVUse
from server.memory.kinds import MemoryKind

ROOT = Path(__file__).parents[2]


def accounting_sources(
    device: Any, held_bytes: Callable[[], Mapping[MemoryKind, int]], **changes: Any
) -> AccountingSources:
    """Of a device, and of an engine that holds so much, whose KV cache is empty."""
    idle: dict[str, Any] = {
        "kv_use": lambda: KVUse(0, 0, 0, 0),
        "kv_page_bytes": 1,
        "kv_token_bytes": 1,
        "peak_activation_bytes": lambda: 0,
    }
    return AccountingSources(device=device, held_bytes=held_bytes, **(idle | changes))


def figures_of(module: str, *arguments: object, timeout: float, quiet: str = "") -> dict[str, Any]:
    """The JSON object that a module prints in a fresh interpreter: its books are those of a whole
    process. The words in ``quiet`` must not stand in its log."""
    result = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=timeout,
    )
    assert result.returncode == 0, result.stderr
    assert not quiet or quiet not in result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found
