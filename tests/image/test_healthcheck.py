"""The image's health check, against a server of one answer."""

from __future__ import annotations

import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "deploy" / "healthcheck.py"


@contextmanager
def answering(**statuses: int) -> Iterator[int]:
    """A server on a free port that answers ``/name`` with its status, and all else with 404."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(statuses.get(self.path.removeprefix("/"), 404))
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: the test reads the script's own words."""

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        try:
            yield httpd.server_port
        finally:
            httpd.shutdown()
            thread.join()


def check(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("QUIRE_")}
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        env=environment | {"PYTHONPATH": str(SCRIPT.parents[1])} | variables,
        capture_output=True,
        text=True,
        timeout=30,
    )


def test_200_is_healthy_at_the_port_that_the_server_reads() -> None:
    with answering(health=200, ready=503) as port:
        assert check(QUIRE_PORT=str(port), QUIRE_HOST="0.0.0.0").returncode == 0
        not_ready = check("/ready", QUIRE_PORT=str(port))
    assert (not_ready.returncode, not_ready.stderr) == (1, "/ready: HTTP 503\n")


def test_nobody_there_is_unhealthy_and_says_so() -> None:
    with answering() as port:
        pass
    nobody = check(QUIRE_PORT=str(port))
    assert nobody.returncode == 1
    assert "refused" in nobody.stderr


def test_an_option_that_the_server_would_refuse_is_unhealthy() -> None:
    refused = check(QUIRE_PORT="many")
    assert refused.returncode == 1
    assert "QUIRE_PORT" in refused.stderr
