"""Processes that die or are told to stop, with clients in the middle of things."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable

import pytest
from server_process import ServerProcess, engine_children, is_running, wait_until

LONG = {"prompt": "a", "ignore_eos": True, "temperature": 0, "stream": True}
Start = Callable[..., ServerProcess]


def read_all(connection: socket.socket) -> tuple[bytes, float]:
    """Everything until the stream's end, and when it ended."""
    data = b""
    while not data.endswith(b"0\r\n\r\n"):
        part = connection.recv(65536)
        if not part:
            break
        data += part
    return data, time.monotonic()


def open_streams(server: ServerProcess, count: int, max_tokens: int) -> list[socket.socket]:
    """Streams that have begun to speak."""
    connections = [server.connect() for _ in range(count)]
    for one in connections:
        one.sendall(server.request_bytes(**LONG, max_tokens=max_tokens))
    wait_until(lambda: server.metric("quire_requests_running") >= 1, 5, "running")
    return connections


def read_in_background(
    connections: list[socket.socket],
) -> tuple[list[threading.Thread], list[tuple[bytes, float]]]:
    found: list[tuple[bytes, float]] = []
    threads = [
        threading.Thread(target=lambda one=one: found.append(read_all(one))) for one in connections
    ]
    for thread in threads:
        thread.start()
    return threads, found


def test_a_killed_engine_ends_streams_with_an_error_and_comes_back(start: Start) -> None:
    server = start()
    expected = server.post(prompt="hello", max_tokens=8, temperature=0).json()["choices"]
    connections = open_streams(server, 8, 1000)
    threads, found = read_in_background(connections)
    engine = server.engine_pid()
    killed = time.monotonic()
    os.kill(engine, signal.SIGKILL)
    wait_until(lambda: server.status("/ready") == 503, 2, "not ready")
    for thread in threads:
        thread.join(5)
    assert len(found) == 8
    for data, ended in found:
        assert ended - killed < 2
        last = data.split(b"event: error\ndata: ")[1].split(b"\n\n")[0]
        assert json.loads(last)["error"]["code"] == "engine_unavailable"
        assert b"[DONE]" not in data
    server.wait_ready()
    assert server.engine_pid() != engine
    again = server.post(prompt="hello", max_tokens=8, temperature=0).json()["choices"]
    assert again == expected
    assert server.metric("quire_engine_restarts_total") == 1
    wait_until(server.is_idle, 1, "all blocks free")
    for one in connections:
        one.close()


def test_a_killed_api_process_leaves_no_engine_behind(start: Start) -> None:
    server = start()
    engine = server.engine_pid()
    connections = open_streams(server, 2, 1000)
    server.process.kill()
    server.process.wait()
    wait_until(lambda: not is_running(engine), 3, "the engine is gone")
    for one in connections:
        one.close()


def test_sigterm_truncates_none_of_16_streams_and_exits_0(start: Start) -> None:
    server = start()
    engine = server.engine_pid()
    connections = open_streams(server, 16, 150)
    threads, found = read_in_background(connections)
    server.terminate()
    wait_until(lambda: server.status("/ready") != 200, 2, "not ready")
    for thread in threads:
        thread.join(60)
    assert len(found) == 16
    for data, _ in found:
        assert data.startswith(b"HTTP/1.1 200 ")
        assert data.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        assert data.count(b'"finish_reason":"length"') == 1
    assert server.process.wait(20) == 0
    assert not is_running(engine)
    for one in connections:
        one.close()


def test_past_the_queue_bound_it_is_429_with_retry_after(start: Start) -> None:
    server = start(max_num_seqs=2, max_queued_requests=3)
    connections = open_streams(server, 2, 900)
    wait_until(lambda: server.metric("quire_requests_running") == 2, 5, "a full batch")
    connections += open_streams(server, 3, 900)
    wait_until(lambda: server.metric("quire_requests_waiting") == 3, 5, "a full queue")
    for stream in (False, True):
        response = server.post(prompt="a", max_tokens=1, stream=stream)
        assert response.status_code == 429
        assert int(response.headers["retry-after"]) >= 1
        assert response.json()["error"]["code"] == "queue_full"
    assert server.metric("quire_requests_total", outcome="overloaded") == 2
    for one in connections:
        one.close()
    wait_until(server.is_idle, 1, "all blocks free")
    assert server.post(prompt="a", max_tokens=1).status_code == 200


@pytest.mark.slow
def test_an_engine_killed_again_and_again_comes_back_each_time(start: Start) -> None:
    server = start()
    for _ in range(3):
        os.kill(server.engine_pid(), signal.SIGKILL)
        wait_until(lambda: server.status("/ready") != 200, 2, "not ready")
        server.wait_ready()
        assert server.post(prompt="a", max_tokens=1).status_code == 200
        assert len(engine_children(server.process.pid)) == 1
