"""A client that leaves, at any stage, leaves nothing behind.

"At once" is told by the engine's steps: the answers that are left would take hundreds more.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from tests.e2e.server_process import ServerProcess, wait_until

TOKENS = 900
LONG = {"prompt": "深度学习是", "max_tokens": TOKENS, "ignore_eos": True, "temperature": 0}
MOST_STEPS = TOKENS // 2  # from leaving to idle; none of it had come halfway
HANGS_S = 60


@contextmanager
def leaving_at_once(
    server: ServerProcess, connections: Sequence[socket.socket], aborted: int
) -> Iterator[None]:
    """The connections close after the block. Their requests end then, ``aborted`` of them are
    counted, each once, and nothing of theirs is held."""
    counted = server.metric("quire_requests_total")
    before = server.metric("quire_requests_total", outcome="abort")
    clients = {one.getsockname()[1] for one in connections}
    try:
        yield
        wait_until(lambda: server.holds(clients) == len(clients), HANGS_S, "each is held")
        steps = server.metric("quire_engine_steps_total")
    finally:  # a test that fails leaves no work behind it
        for one in connections:
            one.close()
    wait_until(server.is_idle, HANGS_S, "all blocks free")
    wait_until(lambda: not server.holds(clients), HANGS_S, "no connection is held")
    assert server.metric("quire_engine_steps_total") - steps < MOST_STEPS
    wait_until(
        lambda: server.metric("quire_requests_total") >= counted + aborted, HANGS_S, "counted"
    )
    assert server.metric("quire_requests_total") == counted + aborted
    assert server.metric("quire_requests_total", outcome="abort") == before + aborted


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("stage", ["queued", "first token", "mid-stream"])
def test_leaving_frees_all_blocks_at_once(server: ServerProcess, stage: str, stream: bool) -> None:
    wait_until(server.is_idle, HANGS_S, "idle before")
    crowd = [server.connect() for _ in range(20)] if stage == "queued" else []
    connection = server.connect()
    with leaving_at_once(server, [connection, *crowd], len(crowd) + 1):
        for one in crowd:  # more than max-num-seqs
            one.sendall(server.request_bytes(**LONG, stream=False))
        if crowd:
            wait_until(lambda: server.metric("quire_requests_waiting") >= 1, HANGS_S, "a queue")
        connection.sendall(server.request_bytes(**LONG, stream=stream, n=2))
        if stage == "queued":
            wait_until(lambda: open_requests(server) == len(crowd) + 1, HANGS_S, "it is there")
        else:
            wait_until(lambda: server.active_blocks() > 0, HANGS_S, "it runs")
        if stage == "mid-stream":
            held = server.active_blocks()
            wait_until(lambda: server.active_blocks() > held, HANGS_S, "it grows")
            if stream:
                assert b"data: " in connection.recv(65536)
    assert server.post(prompt="a", max_tokens=2).status_code == 200


def open_requests(server: ServerProcess) -> float:
    return server.metric("quire_requests_running") + server.metric("quire_requests_waiting")


@pytest.mark.parametrize("stage", ["headers", "body"])
def test_leaving_with_a_request_half_sent_holds_no_connection_and_asks_nothing_of_the_engine(
    server: ServerProcess, stage: str
) -> None:
    """Headers that end nowhere are no request. A body that does is one, and its client left it."""
    wait_until(server.is_idle, HANGS_S, "idle before")
    data = server.request_bytes(**LONG, n=2)
    head_end = data.index(b"\r\n\r\n")
    half = data[: head_end // 2 if stage == "headers" else head_end + 20]
    connections = [server.connect() for _ in range(3)]
    prompt_tokens = server.metric("quire_prompt_tokens_total")
    with leaving_at_once(server, connections, 0 if stage == "headers" else 3):
        for one in connections:
            one.sendall(half)
        clients = {one.getsockname()[1] for one in connections}
        wait_until(lambda: server.holds(clients) == 3, HANGS_S, "they are accepted")
    assert server.metric("quire_prompt_tokens_total") == prompt_tokens
    assert server.post(prompt="a", max_tokens=2).status_code == 200
