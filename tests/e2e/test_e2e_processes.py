"""Processes that die or are told to stop, with clients in the middle of things."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import httpx
import pytest

from tests.e2e.server_process import ServerProcess, engine_children, wait_until
from tests.living import is_running

LONG = {"prompt": "a", "ignore_eos": True, "temperature": 0, "stream": True}
Start = Callable[..., ServerProcess]
HANGS_S = 60  # ends a test whose server hangs: no measure


class Streams:
    """Streams that have begun: each has its 200. Use as a context manager, which closes them."""

    def __init__(self, server: ServerProcess, count: int, max_tokens: int) -> None:
        self.connections = [server.connect() for _ in range(count)]
        for one in self.connections:
            one.sendall(server.request_bytes(**LONG, max_tokens=max_tokens))
        self.heads = [one.recv(65536) for one in self.connections]
        assert all(head.startswith(b"HTTP/1.1 200 ") for head in self.heads)

    def __enter__(self) -> Streams:
        return self

    def __exit__(self, *_: object) -> None:
        for one in self.connections:
            one.close()

    def read_in_background(self) -> Future[list[bytes]]:
        """Each stream's whole bytes."""
        pool = ThreadPoolExecutor(len(self.connections) + 1)
        pairs = zip(self.connections, self.heads, strict=True)
        jobs = [pool.submit(read_to_end, *pair) for pair in pairs]
        done = pool.submit(lambda: [job.result() for job in jobs])
        pool.shutdown(wait=False)
        return done


def read_to_end(connection: socket.socket, data: bytes) -> bytes:
    """Everything until the end of the chunked body, or of the connection."""
    while not data.endswith(b"0\r\n\r\n"):
        part = connection.recv(65536)
        if not part:
            break
        data += part
    return data


def test_a_killed_engine_ends_streams_with_an_error_and_comes_back(start: Start) -> None:
    server = start()
    expected = server.post(prompt="hello", max_tokens=8, temperature=0).json()["choices"]
    engine = server.engine_pid()
    with Streams(server, 8, 1000) as streams:
        reading = streams.read_in_background()
        os.kill(engine, signal.SIGKILL)
        wait_until(lambda: server.status("/ready") == 503, HANGS_S, "not ready")
        (down,) = httpx.get(f"{server.base_url}/memory").json()["devices"]
        assert (down["ready"], down["resident_bytes"]) == (False, 0)
        assert server.metric("quire_requests_running") == server.metric("quire_engine_up") == 0
        assert server.status("/health") == 200
        found = reading.result(HANGS_S)
    assert "the engine died (signal 9)" in server.log.read_text(), "and was not taken for still"
    for data in found:
        last = data.split(b"event: error\ndata: ")[1].split(b"\n\n")[0]
        assert json.loads(last)["error"]["code"] == "engine_unavailable"
        assert b"[DONE]" not in data
    server.wait_ready()
    assert server.engine_pid() != engine
    again = server.post(prompt="hello", max_tokens=8, temperature=0).json()["choices"]
    assert again == expected
    assert server.metric("quire_engine_restarts_total") == 1
    wait_until(server.is_idle, 10, "all blocks free")


def test_a_killed_api_process_leaves_no_engine_behind(start: Start) -> None:
    server = start()
    engine = server.engine_pid()
    with Streams(server, 2, 1000):
        server.process.kill()
        server.process.wait()
        wait_until(lambda: not is_running(engine), HANGS_S, "the engine is gone")


def test_sigterm_truncates_none_of_16_streams_and_exits_0(start: Start) -> None:
    """The engine stands still until the server is seen to drain: no stream ends before."""
    server = start(drain_timeout=600)
    engine = server.engine_pid()
    with Streams(server, 16, 200) as streams:
        reading = streams.read_in_background()
        os.kill(engine, signal.SIGSTOP)
        server.terminate()
        drains = "SIGTERM: draining"
        wait_until(lambda: drains in server.log.read_text(), HANGS_S, "it drains")
        assert "shutting_down" in httpx.get(f"{server.base_url}/ready").text
        refused = server.post(prompt="a", max_tokens=1)
        assert refused.status_code == server.status("/ready") == 503
        assert refused.json()["error"]["code"] == "shutting_down"
        os.kill(engine, signal.SIGCONT)
        found = reading.result(4 * HANGS_S)
    for data in found:
        assert data.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        assert data.count(b'"finish_reason":"length"') == 1
    assert server.process.wait(HANGS_S) == 0
    assert not is_running(engine)
    assert server.log.read_text().count("/v1/completions 200 length") == 16


def test_a_second_signal_ends_the_server_at_once_and_its_engine_with_it(start: Start) -> None:
    """The engine stands still until then: its stream does not end before."""
    server = start(drain_timeout=600)
    engine = server.engine_pid()
    with Streams(server, 1, 1000):
        os.kill(engine, signal.SIGSTOP)
        server.process.send_signal(signal.SIGINT)
        server.process.send_signal(signal.SIGINT)  # as a launcher passes on what its group got
        wait_until(lambda: server.status("/ready") == 503, HANGS_S, "it drains")
        time.sleep(0.2)
        assert server.process.poll() is None
        os.kill(engine, signal.SIGCONT)
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(HANGS_S) == 130
        wait_until(lambda: not is_running(engine), HANGS_S, "the engine is gone")


def while_stopped(engine: int, *streams: Streams) -> None:
    """An engine that stands still, and a queue, keep no stream silent."""
    os.kill(engine, signal.SIGSTOP)
    try:
        for one in streams:
            connection, data = one.connections[0], b""
            while b": keep-alive\n\n" not in data:
                part = connection.recv(65536)
                assert part, data
                data = data[-64:] + part
    finally:
        os.kill(engine, signal.SIGCONT)


def test_past_the_queue_bound_it_is_429_with_retry_after(start: Start) -> None:
    server = start(max_num_seqs=2, max_queued_requests=3, stream_keep_alive=1)
    with Streams(server, 2, 900) as running:
        wait_until(lambda: server.metric("quire_requests_running") == 2, HANGS_S, "a full batch")
        with Streams(server, 3, 900) as waiting:
            wait_until(
                lambda: server.metric("quire_requests_waiting") == 3, HANGS_S, "a full queue"
            )
            for stream in (False, True):
                response = server.post(prompt="a", max_tokens=1, stream=stream)
                assert response.status_code == 429
                assert int(response.headers["retry-after"]) >= 1
                assert response.json()["error"]["code"] == "queue_full"
            assert server.metric("quire_requests_total", outcome="overloaded") == 2
            while_stopped(server.engine_pid(), running, waiting)
    wait_until(server.is_idle, HANGS_S, "all blocks free")
    assert server.post(prompt="a", max_tokens=1).status_code == 200


@pytest.mark.slow
def test_an_engine_killed_again_and_again_comes_back_each_time(start: Start) -> None:
    server = start()
    for _ in range(3):
        os.kill(server.engine_pid(), signal.SIGKILL)
        wait_until(lambda: server.status("/ready") != 200, HANGS_S, "not ready")
        server.wait_ready()
        assert server.post(prompt="a", max_tokens=1).status_code == 200
        assert len(engine_children(server.process.pid)) == 1
