"""Offline throughput of the engine: ``python -m server.bench [MODEL_DIR] ...``, see --help.

Only sets the process up; the bench itself is server.bench_engine.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from server.config import limit_thread_spinning


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the bench as the engine process would run; returns the exit code."""
    limit_thread_spinning()  # before torch is loaded
    from server.bench_engine import main as run

    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
