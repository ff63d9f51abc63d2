"""A real server process: started on a free port, watched through its own endpoints."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import httpx

VOCAB_SIZE = 512
MAX_MODEL_LEN = 1024
MAX_BODY_BYTES = 1024 * 1024
ROOT = Path(__file__).resolve().parents[2]
SAMPLE = re.compile(r"^(\w+)(?:\{([^}]*)\})? ([0-9.e+-]+)$", re.MULTILINE)


def http_get(url: str, **options: Any) -> httpx.Response:
    """A GET over a connection of its own. The certificates that httpx would read first, for plain
    HTTP too, take 50 ms of a core, and who waits for a server asks often."""
    return httpx.get(url, verify=False, **{"timeout": 60, **options})


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> float:
    """Waits for ``condition``; returns how long it took. Fails with ``what``.

    ``seconds`` ends a test whose server hangs. It is no measure of a server that is slow, because
    the machine may be busy: a test that means "soon" counts steps or compares with a control.
    """
    started = time.monotonic()
    while not condition():
        if time.monotonic() - started > seconds:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(min(0.05, 0.01 + 0.1 * (time.monotonic() - started)))  # a poll is work, too
    return time.monotonic() - started


class ServerProcess:
    """``python -m server serve MODEL_DIR`` with options; use as a context manager.

    The KV cache's books are checked after every step, except where ``strict`` is False: where
    seconds are measured.
    """

    def __init__(
        self, model_dir: Path, log: Path, *, strict: bool = True, **options: object
    ) -> None:
        self.port = free_port()
        self.base_url = f"http://127.0.0.1:{self.port}"
        self.model = model_dir.name
        flags = {"port": self.port, "threads": 1, **options}
        arguments = [
            part for name, value in flags.items() for part in (f"--{name.replace('_', '-')}", value)
        ]
        self._log_file = log.open("w")
        self.log = log
        self.process = subprocess.Popen(
            [sys.executable, "-m", "server", "serve", str(model_dir), *map(str, arguments)],
            cwd=ROOT,
            stdout=self._log_file,
            stderr=subprocess.STDOUT,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "QUIRE_DEBUG_CHECK_INVARIANTS": "on" if strict else "off",
            },
        )

    def __enter__(self) -> ServerProcess:
        try:
            self.wait_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._log_file.close()

    def wait_ready(self, seconds: float = 240) -> float:
        def ready() -> bool:
            if self.process.poll() is not None:
                raise AssertionError(f"the server ended:\n{self.log.read_text()}")
            return self.status("/ready") == 200

        return wait_until(ready, seconds, f"ready\n{self.log.read_text()}")

    def status(self, path: str) -> int:
        """The status of a GET; 0 where nobody answers."""
        try:
            return http_get(self.base_url + path).status_code
        except httpx.HTTPError:
            return 0

    def post(self, path: str = "/v1/completions", **body: Any) -> httpx.Response:
        body = {"model": self.model, **body}
        return httpx.post(self.base_url + path, json=body, timeout=60, verify=False)

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that carry ``labels``."""
        text = http_get(self.base_url + "/metrics").text
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        return sum(
            float(value)
            for found, carried, value in SAMPLE.findall(text)
            if found == name and all(label in carried for label in wanted)
        )

    def active_blocks(self) -> float:
        return self.metric("quire_kv_blocks", state="live")

    def is_idle(self) -> bool:
        """No block is held and nobody runs or waits."""
        names = ("quire_requests_running", "quire_requests_waiting")
        return not self.active_blocks() and not any(self.metric(name) for name in names)

    def holds(self, clients: Collection[int]) -> int:
        """How many connections from these ports of clients the server has accepted and not closed.

        The kernel's table says so: a socket that nobody holds has no inode. The table is read in
        pieces: where it changes meanwhile, a row may come twice.
        """
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        ports = [[int(row[end].split(":")[1], 16) for end in (1, 2)] for row in rows]
        held = {
            there
            for row, (here, there) in zip(rows, ports, strict=True)
            if here == self.port and row[9] != "0"
        }
        return len(held.intersection(clients))

    def engine_pid(self) -> int:
        """The one child that is the engine. Fails where there is not exactly one."""
        (found,) = engine_children(self.process.pid)
        return found

    def request_bytes(self, **body: Any) -> bytes:
        """A whole completion request as it goes over the wire."""
        content = json.dumps({"model": self.model, **body}).encode()
        head = (
            "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            f"content-length: {len(content)}\r\n\r\n"
        )
        return head.encode() + content

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)


def engine_children(pid: int) -> list[int]:
    """Children of ``pid`` whose command line names the engine's module."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            stat = (folder / "stat").read_text()
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        state, parent = stat.rpartition(")")[2].split()[:2]
        if int(parent) == pid and b"server.worker" in command and state != "Z":
            found.append(int(folder.name))
    return found


def events(text: str) -> list[Mapping[str, Any]]:
    """The data of a finished stream of server-sent events."""
    *parts, last = text.split("\n\n")
    assert last == ""
    assert parts.pop() == "data: [DONE]"
    return [json.loads(part.removeprefix("data: ")) for part in parts]
