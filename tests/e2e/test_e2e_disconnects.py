"""A client that leaves, at any stage, leaves nothing behind."""

from __future__ import annotations

import pytest
from server_process import ServerProcess, wait_until

LONG = {"prompt": "深度学习是", "max_tokens": 900, "ignore_eos": True, "temperature": 0}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "stage", ["headers half sent", "body half sent", "queued", "first token", "mid-stream"]
)
def test_leaving_frees_all_blocks_within_a_second(
    server: ServerProcess, stage: str, stream: bool
) -> None:
    wait_until(server.is_idle, 2, "idle before")
    data = server.request_bytes(**LONG, stream=stream, n=2)
    head_end = data.index(b"\r\n\r\n")
    crowd = []
    if stage == "queued":
        crowd = [server.connect() for _ in range(20)]  # more than max-num-seqs
        for one in crowd:
            one.sendall(server.request_bytes(**LONG, stream=False))
        wait_until(lambda: server.metric("quire_requests_waiting") >= 1, 5, "a queue")
    connection = server.connect()
    sent = {"headers half sent": head_end // 2, "body half sent": head_end + 20}
    connection.sendall(data[: sent.get(stage, len(data))])
    if stage in ("first token", "mid-stream"):
        wait_until(lambda: server.active_blocks() > 0, 5, "it runs")
    if stage == "mid-stream":
        generated = server.active_blocks()
        wait_until(lambda: server.active_blocks() > generated, 5, "it grows")
        if stream:
            assert b"data: " in connection.recv(65536)
    for one in [connection, *crowd]:
        one.close()
    wait_until(server.is_idle, 1, f"all blocks free after leaving with {stage}")
    assert server.post(prompt="a", max_tokens=2).status_code == 200


def test_each_is_counted_once_as_aborted(server: ServerProcess) -> None:
    before = server.metric("quire_requests_total", outcome="abort")
    total = server.metric("quire_requests_total")
    connections = [server.connect() for _ in range(4)]
    for one in connections:
        one.sendall(server.request_bytes(**LONG, stream=True))
        assert one.recv(1024).startswith(b"HTTP/1.1 200 ")
    for one in connections:
        one.close()
    wait_until(
        lambda: server.metric("quire_requests_total", outcome="abort") == before + 4, 1, "counted"
    )
    assert server.metric("quire_requests_total") == total + 4
    wait_until(server.is_idle, 1, "all blocks free")
