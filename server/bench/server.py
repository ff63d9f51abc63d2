"""A server of its own for a bench, over real sockets: started, asked, and killed at the end."""

from __future__ import annotations

import http.client
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HOST = "127.0.0.1"
KEEPS_BYTECODE = ("env", "-u", "PYTHONDONTWRITEBYTECODE")  # becomes what it runs
START_S, ANSWER_S = 300.0, 60.0


@contextmanager
def started_server(arguments: Sequence[str]) -> Iterator[int]:
    """Serves on a free port while entered; yields the port of a server that is ready.

    Args:
        arguments: of ``python -m server serve``, without the port.

    Raises:
        SystemExit: it ended, or was not ready in time.
    """
    port = free_port()
    with started(serve_command(arguments, port), port):
        yield port


@contextmanager
def started(
    command: Sequence[str], port: int, ready: str = "/ready", poll_s: float = 0.05
) -> Iterator[subprocess.Popen[bytes]]:
    """Runs any server while entered; yields its process once ``ready`` answers 200.

    Python keeps the bytecode of its modules even where the caller's is told not to: a server that
    compiles them at every start, which takes up to a second, is not what users have.

    Raises:
        SystemExit: it ended, or was not ready in time.
    """
    process = subprocess.Popen(
        (*KEEPS_BYTECODE, *command),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_ready(process, port, ready, poll_s)
        yield process
    finally:
        process.kill()
        process.wait()


def serve_command(arguments: Sequence[str], port: int) -> list[str]:
    """Of our own server."""
    return [sys.executable, "-m", "server", "serve", *arguments, "--port", str(port)]


def free_port() -> int:
    with socket.socket() as one:
        one.bind((HOST, 0))
        return int(one.getsockname()[1])


def get(port: int, path: str) -> tuple[int, bytes]:
    """(status, body). Raises OSError where no server answers."""
    connection = http.client.HTTPConnection(HOST, port, timeout=ANSWER_S)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def _wait_ready(process: subprocess.Popen[bytes], port: int, ready: str, poll_s: float) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemExit(f"the server ended with exit code {process.returncode}")
        try:
            if get(port, ready)[0] == 200:
                return
        except OSError:
            pass  # it does not listen yet
        time.sleep(poll_s)
    raise SystemExit(f"the server was not ready within {START_S:.0f} s")
