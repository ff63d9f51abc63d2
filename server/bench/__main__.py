"""Offline throughput of the engine: ``python -m server.bench [MODEL_DIR] ...``, see --help.

    python -m server.bench gpu     measures the engine's rows on a GPU instead,
    python -m server.bench books   what the accountant costs and how fast /metrics answers,
    python -m server.bench http    what serving over HTTP costs,
    python -m server.bench together   when prompts that arrive together have their first tokens,
    python -m server.bench peers   how it stands beside llama.cpp on this CPU.

Only sets the process up; the bench itself is server.bench.engine.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from server.config.server_config import limit_thread_spinning


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the bench as the engine process would run; returns the exit code."""
    limit_thread_spinning()  # before torch is loaded
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["gpu"]:
        from server.bench.gpu import main as run_gpu

        return run_gpu(given[1:])
    if given[:1] == ["books"]:
        from server.bench.accounting import main as run_books

        return run_books(given[1:])
    if given[:1] == ["http"]:
        from server.bench.http import main as run_http

        return run_http(given[1:])
    if given[:1] == ["together"]:
        from server.bench.together import main as run_together

        return run_together(given[1:])
    if given[:1] == ["peers"]:
        from server.bench.peers.command import main as run_peers

        return run_peers(given[1:])
    from server.bench.engine import main as run

    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
