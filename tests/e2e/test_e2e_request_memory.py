"""What one request holds, of an engine in its own process: while it lives, and in its answer."""

from __future__ import annotations

import threading

import httpx

from tests.e2e.server_process import ServerProcess, wait_until

PAGE = {"usage_details": True, "temperature": 0, "ignore_eos": True}


def ask(server: ServerProcess, name: str) -> httpx.Response:
    return httpx.get(f"{server.base_url}/memory", params={"request_id": name}, timeout=30)


def test_an_answer_tells_the_blocks_that_its_tokens_took(server: ServerProcess) -> None:
    tree = httpx.get(f"{server.base_url}/memory", timeout=30).json()
    kv = tree["devices"][0]["kv"]
    usage = server.post(prompt=[5] * 40, max_tokens=25, **PAGE).json()["usage"]
    memory, times = usage["memory"], usage["timings"]
    # 64 tokens are computed: the last of 65 is never read.
    assert memory["peak_blocks"] == 64 // kv["block_size_tokens"]
    assert memory["block_bytes"] == kv["bytes_per_block"]
    assert memory["peak_bytes"] == memory["peak_blocks"] * memory["block_bytes"]
    held = times["total_seconds"] - times["queue_seconds"]
    assert 0 < memory["byte_seconds"] <= memory["peak_bytes"] * held * 1.1
    assert times["total_seconds"] >= times["decode_seconds"] > 0


def test_a_live_request_answers_by_its_label_until_it_ends(server: ServerProcess) -> None:
    body = {"prompt": "a", "max_tokens": 400, "ignore_eos": True, "n": 2}
    found: list[httpx.Response] = []

    def work() -> None:
        headers = {"x-request-id": "watched"}
        url = f"{server.base_url}/v1/completions"
        found.append(httpx.post(url, json=body, headers=headers, timeout=120))

    thread = threading.Thread(target=work)
    thread.start()

    def holds_blocks() -> bool:
        response = ask(server, "watched")
        if response.status_code == 404:
            return False
        (live,) = response.json()["requests"]
        assert live["client_request_id"] == "watched"
        return bool(live["memory"]["blocks"] and live["memory"]["byte_seconds"])

    wait_until(holds_blocks, 20, "it holds blocks")
    thread.join()
    assert found[0].status_code == 200
    assert ask(server, "watched").status_code == 404
