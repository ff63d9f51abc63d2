"""Adversarial clients of a real server: sockets that close at any moment, within the plan."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.e2e.server_process import ServerProcess, wait_until
from tests.memory.adversarial_mixes import BLOCK_BYTES, LEAST_BLOCKS, LIMITS, MAX_LEN, MODEL, VOCAB
from weights.synthetic.checkpoint import write_checkpoint, write_tokenizer

KINDS = ("weights", "kv_cache", "io", "workspace", "activations")


def body(rng: random.Random) -> dict[str, object]:
    length = rng.choice((1, 16, 100, 300, MAX_LEN - 2))
    return {
        "prompt": [rng.randrange(5, VOCAB) for _ in range(length)],
        "max_tokens": rng.choice((1, 2)) if length > 300 else rng.choice((1, 4, 24)),
        "n": rng.choice((1, 2, 8)),
        "logprobs": rng.choice((None, 0, 20)),
        "echo": rng.random() < 0.5,
        "stream": rng.random() < 0.5,
        "frequency_penalty": rng.choice((0.0, 0.5)),
        "temperature": rng.choice((0.0, 1.0, 2.0)),
        "top_p": rng.choice((1.0, 0.9)),
        "stop": rng.choice((None, ["a", "e"])),
        "priority": rng.choice((0, -1, 2)),
    }


def client(server: ServerProcess, seed: int) -> bytes:
    """Sends one request and reads its answer, or leaves in the midst of it."""
    rng = random.Random(seed)
    data = server.request_bytes(**body(rng))
    with server.connect() as connection:
        connection.settimeout(120)
        if rng.random() < 0.5:
            connection.sendall(data)
            time.sleep(rng.random() * 0.3)
            return b""
        connection.sendall(data)
        return connection.recv(64)


@pytest.mark.slow
def test_clients_that_leave_at_any_moment_cost_no_more_than_was_planned(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    write_checkpoint(MODEL, folder, seed=1, sharp=False)
    write_tokenizer(folder, VOCAB)
    limits = {name.replace("-", "_"): value for name, value in LIMITS.items()}
    kv_bytes = 2 * LEAST_BLOCKS * BLOCK_BYTES
    with ServerProcess(
        folder, tmp_path / "log", dtype="float32", kv_cache_memory=kv_bytes, **limits
    ) as server:
        with ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(lambda seed: client(server, seed), range(40)))
        read = [answer for answer in answers if answer]
        assert len(read) > 5
        assert all(answer.startswith(b"HTTP/1.1 200 ") for answer in read), set(read)
        wait_until(server.is_idle, 60, "idle after all have gone")
        time.sleep(1)  # until the books are read again
        device = httpx.get(f"{server.base_url}/memory", timeout=60).json()["devices"][0]
        for kind in KINDS:
            line = device["kinds"][kind]
            assert line["peak_bytes"] <= line["planned_bytes"], kind
        assert server.post(prompt=[5, 6], max_tokens=2).status_code == 200
        assert server.post(prompt=[5] * (MAX_LEN + 1), max_tokens=1).status_code == 400
    assert "out of memory in step" not in (tmp_path / "log").read_text()
