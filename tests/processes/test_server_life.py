"""A real server with the demo model, from its start-up report to its last answer."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
HANGS_S = 60  # ends a test whose server hangs: no measure


class Server:
    """``quire serve`` on a free port. ``report`` is what it printed until it was ready."""

    def __init__(self, *options: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "server", "serve", "--port", "0", "--threads", "1", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "QUIRE_DEBUG_CHECK_INVARIANTS": "on"},
        )
        assert self.process.stdout is not None
        self.report = ""
        for line in self.process.stdout:
            self.report += line
            if "-d '{" in line:
                break
        found = re.search(r"http://127\.0\.0\.1:(\d+)", self.report)
        assert found, self.end(signal.SIGKILL)[1]
        self.port = int(found.group(1))

    def get(self, path: str) -> tuple[int, str]:
        return self.ask("GET", path, None)

    def complete(self, **fields: Any) -> tuple[int, str]:
        body = {"model": "quire-demo", "prompt": "import ", "temperature": 0, **fields}
        return self.ask("POST", "/v1/completions", json.dumps(body))

    def ask(self, method: str, path: str, body: str | None) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def gauge(self, name: str) -> float:
        [value] = re.findall(rf"^{name} (.+)$", self.get("/metrics")[1], re.MULTILINE)
        return float(value)

    def engine_pid(self) -> int:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        for pid in children.split():
            if "server.worker" in Path(f"/proc/{pid}/cmdline").read_text():
                return int(pid)
        raise AssertionError("there is no engine process")

    def end(self, number: int) -> tuple[int, str]:
        """Sends a signal; returns exit code and standard error."""
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=60)
        return self.process.returncode, errors


class Stream(threading.Thread):
    """One streamed completion, read to its end: ``text``, and the ``error`` event if there was."""

    def __init__(self, server: Server, max_tokens: int) -> None:
        super().__init__()
        self._server, self._max_tokens = server, max_tokens
        self.lines: list[str] = []
        self.first = threading.Event()
        self.start()

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._server.port, timeout=60)
        body = {
            "model": "quire-demo",
            "prompt": "def ",
            "max_tokens": self._max_tokens,
            "ignore_eos": True,
            "stream": True,
        }
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/completions", json.dumps(body), headers)
        for raw in connection.getresponse():
            self.lines.append(raw.decode().strip())
            self.first.set()
        connection.close()

    @property
    def chunks(self) -> list[dict[str, Any]]:
        data = [line.removeprefix("data: ") for line in self.lines if line.startswith("data: ")]
        return [json.loads(line) for line in data if line != "[DONE]"]

    @property
    def finish_reason(self) -> str | None:
        choices = [chunk["choices"][0] for chunk in self.chunks if "choices" in chunk]
        return choices[-1]["finish_reason"] if choices else None

    @property
    def error(self) -> dict[str, Any] | None:
        return next((chunk["error"] for chunk in self.chunks if "error" in chunk), None)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server("--drain-timeout", "600")
    yield server
    if server.process.poll() is None:
        server.end(signal.SIGKILL)


def until(condition: Any) -> None:
    deadline = time.monotonic() + HANGS_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def test_the_report_tells_what_is_served(server: Server) -> None:
    for words in ("quire-demo", "parameters", "bf16", "KV cache", "weights", "runtime", "curl"):
        assert words in server.report


def test_it_answers(server: Server) -> None:
    status, body = server.complete(max_tokens=4)
    assert status == 200, body
    assert json.loads(body)["usage"]["completion_tokens"] > 0
    assert server.get("/ready")[0] == server.get("/health")[0] == 200


def test_its_books_close_over_http(server: Server) -> None:
    tree = json.loads(server.get("/memory")[1])
    [device] = tree["devices"]
    kinds = device["kinds"]
    assert sum(kind["bytes"] for kind in kinds.values()) == device["total_bytes"] > 0
    assert abs(kinds["unaccounted"]["bytes"]) < max(8 * 2**20, 0.03 * device["resident_bytes"])
    weights = kinds["weights"]
    assert sum(part["bytes"] for part in weights["parts"]) == weights["bytes"]
    assert weights["bytes"] == weights["planned_bytes"]
    assert "unaccounted" in server.get("/memory?format=text")[1]


def test_kill_9_of_the_engine_ends_streams_with_an_error_and_service_comes_back(
    server: Server,
) -> None:
    streams = [Stream(server, 900) for _ in range(4)]
    for stream in streams:
        assert stream.first.wait(HANGS_S)
    os.kill(server.engine_pid(), signal.SIGKILL)
    until(lambda: server.get("/ready")[0] == 503)
    for stream in streams:
        stream.join(HANGS_S)
        assert stream.error is not None
        assert stream.error["code"] == "engine_unavailable"
    down = json.loads(server.get("/memory")[1])["devices"][0]
    assert (down["ready"], down["resident_bytes"]) == (False, 0)
    assert server.gauge("quire_requests_running") == server.gauge("quire_engine_up") == 0
    assert server.get("/health")[0] == 200
    until(lambda: server.get("/ready")[0] == 200)
    assert server.complete(max_tokens=2)[0] == 200
    assert server.gauge("quire_engine_restarts_total") == 1


def test_sigterm_truncates_no_open_stream_refuses_new_ones_and_exits_with_0(
    server: Server,
) -> None:
    """The engine stands still while new requests are refused: no stream ends before."""
    streams = [Stream(server, 120) for _ in range(16)]
    for stream in streams:
        assert stream.first.wait(HANGS_S)
    engine = server.engine_pid()
    os.kill(engine, signal.SIGSTOP)
    server.process.send_signal(signal.SIGTERM)
    until(lambda: "shutting_down" in server.get("/ready")[1])
    status, body = server.complete(max_tokens=1)
    assert (status, json.loads(body)["error"]["code"]) == (503, "shutting_down")
    os.kill(engine, signal.SIGCONT)
    for stream in streams:
        stream.join(HANGS_S)
        assert stream.error is None
        assert stream.finish_reason == "length"
        assert stream.lines[-2:] == ["data: [DONE]", ""]
    _, errors = server.process.communicate(timeout=HANGS_S)
    assert server.process.returncode == 0, errors
    assert "the engine died (signal 9)" in errors, "and was not taken for still"
    assert errors.count("/v1/completions 200 length") >= 16


def test_a_second_signal_ends_the_server_at_once_and_its_engine_with_it() -> None:
    server = Server("--drain-timeout", "600")
    engine = server.engine_pid()
    stream = Stream(server, 1000)
    assert stream.first.wait(HANGS_S)
    server.process.send_signal(signal.SIGINT)
    server.process.send_signal(signal.SIGINT)  # as a launcher passes on what its group got
    until(lambda: server.get("/ready")[0] == 503)
    time.sleep(0.2)
    assert server.process.poll() is None
    code, _ = server.end(signal.SIGINT)
    assert code == 130
    until(lambda: not cmdline(engine))
    stream.join(10)


def test_a_folder_of_the_same_name_where_it_is_started_is_not_taken_for_ours(
    tmp_path: Path,
) -> None:
    (tmp_path / "server").mkdir()
    (tmp_path / "server" / "__init__.py").write_text("raise RuntimeError('not ours')")
    installed = "import sys; from server.entry import main; sys.exit(main())"  # as the quire script
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", installed, "serve", "--port", "0", "--threads", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    first = process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert first.startswith("Quire serves "), errors
    assert process.returncode == 0, errors


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_it_starts_ends_it_in_silence(number: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "server", "serve", "--port", "0", "--threads", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    )
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    until(children.read_text)
    os.killpg(process.pid, number)  # as a terminal does
    output, errors = process.communicate(timeout=30)
    assert (process.returncode, output, errors) == (0, "", "")


def cmdline(pid: int) -> str:
    """Empty for a process that is gone, or dead and not yet reaped."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""
