"""Starts a Quire server of its own for a measurement, and ends it.

The server is a separate program to this folder: it is spoken to over HTTP like any other.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

READY_S = 120.0
DRAIN_S = 30.0


@contextmanager
def own_server(checkpoint: Path, *options: str) -> Iterator[str]:
    """Serves ``checkpoint`` on a free port of this machine, with these options of serve beside;
    yields the server's root URL.

    Raises:
        RuntimeError: the server ended, or was not ready in time.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "server", "serve", str(checkpoint), "--port", str(port)]
    command += options
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log
        )
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_until_ready(process, url, log)
            yield url
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(DRAIN_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: IO[bytes]) -> None:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            log.seek(0)
            said = log.read().decode(errors="replace").strip()
            raise RuntimeError(f"the server ended with status {process.returncode}: {said}")
        try:
            with urllib.request.urlopen(f"{url}/ready", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)  # not listening yet, or 503 while the engine loads
    raise RuntimeError(f"the server was not ready within {READY_S:.0f} s")
