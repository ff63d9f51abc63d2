"""The page over the server that ships, under load: the demo model, real sockets, a real browser."""

from __future__ import annotations

import itertools
import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import expect

from server.units import format_size
from tests.e2e.server_process import ROOT, ServerProcess, wait_until
from tests.page.page_browser import REFUSED, Open

pytestmark = pytest.mark.slow
DEMO = ROOT / "weights" / "demo" / "checkpoint"
CLIENTS = 4


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    log = tmp_path_factory.mktemp("page") / "server.log"
    with ServerProcess(DEMO, log, served_model_name="quire-demo") as running:
        running.model = "quire-demo"
        yield running


@pytest.fixture
def load(server: ServerProcess) -> Iterator[None]:
    """Clients that ask for one completion after another."""
    stop = threading.Event()

    def client(number: int) -> None:
        for turn in itertools.count():
            if stop.is_set():
                return
            prompt = f"# {number} {turn}\nimport os\n\ndef main(argv):\n"
            answer = server.post(prompt=prompt, max_tokens=96, seed=turn, ignore_eos=True)
            assert answer.status_code == 200, answer.text

    threads = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)


def has_live_blocks(answer: Any) -> bool:
    """The accountant's reading may be of a moment between two requests."""
    return bool(answer["devices"][0]["kinds"]["kv_cache"]["parts"][0]["bytes"] > 0)


@pytest.mark.usefixtures("load")
def test_under_load_the_numbers_are_those_of_the_same_poll(
    visit: Open, server: ServerProcess
) -> None:
    page = visit(server.base_url + "/")
    expect(page.page.locator("#requests-running")).not_to_have_text("0")
    for selector in ("#rate-decode", "#ttft-median", "#ttft-p95", "#itl-median", "#itl-p95"):
        expect(page.page.locator(selector)).not_to_have_text("–", timeout=20_000)
    (answer,) = page.freeze(has_live_blocks)
    rows = page.ledger()
    (device,) = answer["devices"]
    assert page.page.get_attribute("#ledger-total", "value") == str(device["total_bytes"])
    assert page.text("#ledger-check") == "the sum of all kinds"
    for kind, line in device["kinds"].items():
        cells = {"now": line["bytes"], "peak": line["peak_bytes"], "planned": line["planned_bytes"]}
        for column, count in cells.items():
            expected = ["", "–"] if count is None else [str(count), format_size(count)]
            assert rows[kind][column] == expected, (kind, column)
    for part in device["kinds"]["kv_cache"]["parts"]:
        found = rows[f"kv_cache-{part['part']}"]
        assert found == {"now": [str(part["bytes"]), format_size(part["bytes"])]}, part


@pytest.mark.usefixtures("load")
def test_the_playground_streams_and_stops(visit: Open, server: ServerProcess) -> None:
    page = visit(server.base_url + "/")
    page.page.fill("#max-tokens", "600")
    page.page.fill("#temperature", "0")
    page.page.click("#run")
    expect(page.page.locator("#output")).not_to_be_empty()
    assert page.page.get_attribute("#output", "aria-busy") == "true", "it came in one piece"
    page.ended("done")
    prompt = page.page.input_value("#prompt")
    whole = server.post(prompt=prompt, max_tokens=600, temperature=0, seed=1).json()
    assert page.text("#output") == whole["choices"][0]["text"]
    usage = whole["usage"]
    said = f"{usage['prompt_tokens']} + {usage['completion_tokens']} tokens · first after "
    assert page.text("#outcome").startswith(said)
    before = aborts(server)
    page.page.fill("#max-tokens", "900")
    page.page.fill("#temperature", "1")
    page.page.click("#run")
    expect(page.page.locator("#output")).not_to_be_empty()
    page.page.click("#stop")
    page.ended("stopped")
    wait_until(lambda: aborts(server) == before + 1, 60, "the abort is counted")


def aborts(server: ServerProcess) -> float:
    return server.metric("quire_requests_total", route="/v1/completions", outcome="abort")


def test_a_refusal_is_shown_as_the_api_says_it(visit: Open, server: ServerProcess) -> None:
    page = visit(server.base_url + "/")
    page.page.fill("#max-tokens", "5000")
    with page.page.expect_response("**/v1/completions") as refused:
        page.page.click("#run")
    page.ended("error")
    error = json.loads(refused.value.text())["error"]
    assert page.text("#outcome").startswith(error["message"])
    page.complaints = [one for one in page.complaints if "400 (Bad Request)" not in one]


def test_the_engine_s_end_and_the_server_s_are_said_and_survived(
    visit: Open, server: ServerProcess, tmp_path: Path
) -> None:
    page = visit(server.base_url + "/")
    os.kill(server.engine_pid(), signal.SIGKILL)
    page.connected("down")
    page.connected("live")
    server.process.kill()
    server.process.wait()
    page.connected("away")
    again = ServerProcess(DEMO, tmp_path / "again.log", port=server.port)
    again.base_url = server.base_url
    try:
        again.wait_ready()
        page.connected("live")
        expect(page.page.locator("#chart .area").first).to_be_visible()
        assert {"weights", "runtime"} <= page.areas().keys()
        assert httpx.get(server.base_url + "/").status_code == 200
    finally:
        again.__exit__()
    page.complaints = [one for one in page.complaints if not REFUSED.match(one)]
