"""Gauges tell of now: when clients are gone, and when the engine stands still."""

from __future__ import annotations

import http.client
import os
import re
import signal
import time
from collections.abc import Iterator, Sequence

import pytest

from tests.deploy.deploy_tools import ROOT
from tests.deploy.load import Streams
from tests.deploy.real_prometheus import RealPrometheus
from tests.e2e.server_process import ServerProcess, wait_until

DEMO = ROOT / "weights" / "demo" / "checkpoint"
STREAMS = 64
SAMPLE = re.compile(r"^(\w+(?:\{[^}]*\})?) ([0-9.e+-]+)$", re.MULTILINE)
RETURNING = (
    "quire_requests_running",
    "quire_requests_waiting",
    "quire_sequences_running",
    'quire_sequences_waiting{reason="queued"}',
    'quire_sequences_waiting{reason="preempted"}',
    "quire_waiting_prompt_tokens",
    "quire_queue_age_seconds",
    "quire_kv_cache_usage_ratio",
    'quire_kv_blocks{state="live"}',
    'quire_kv_tokens{state="reserved"}',
    'quire_kv_tokens{state="filled"}',
)
# Of the accountant's readings, which are taken as seldom as they are dear.
READ_SELDOM = ('quire_kv_bytes{use="active"}', 'quire_kv_bytes{use="tail_waste"}')

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    log = tmp_path_factory.mktemp("gauges") / "server.log"
    options = {"max-num-seqs": 16, "served-model-name": DEMO.name}
    with ServerProcess(DEMO, log, **options) as running:
        yield running


def scrape(server: ServerProcess) -> dict[str, float]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    return {name: float(value) for name, value in SAMPLE.findall(text)}


def gauges(server: ServerProcess, names: Sequence[str] = RETURNING) -> dict[str, float]:
    values = scrape(server)
    return {name: values[name] for name in names}


def test_gauges_return_after_64_streams_are_killed_at_once_without_new_traffic(
    server: ServerProcess, tmp_path_factory: pytest.TempPathFactory
) -> None:
    server.post(prompt="def", max_tokens=4)  # what it leaves in the cache is not live
    baseline = dict.fromkeys(RETURNING, 0.0)
    wait_until(lambda: gauges(server) == baseline, 60, "idle before")
    before = scrape(server)
    folder = tmp_path_factory.mktemp("prometheus")
    with (
        RealPrometheus(folder, f"127.0.0.1:{server.port}") as prometheus,
        Streams(server, STREAMS, max_tokens=900) as streams,
    ):

        def busy() -> bool:
            now = gauges(server)
            in_all = now["quire_requests_running"] + now["quire_requests_waiting"]
            raised = (now[name] > 0 for name in RETURNING if "preempted" not in name)
            return in_all == STREAMS and now["quire_requests_running"] == 16 and all(raised)

        wait_until(busy, 30, "all streams are accepted, and all gauges are raised")
        wait_until(lambda: all(gauges(server, READ_SELDOM).values()), 60, "raised in bytes")
        wait_until(
            lambda: prometheus.number("quire_requests_waiting") > 0, 30, "seen by Prometheus"
        )
        streams.kill()
        took = wait_until(lambda: gauges(server) == baseline, 60, f"back to {baseline}")
        wait_until(lambda: not any(gauges(server, READ_SELDOM).values()), 60, "back in bytes")
        after = scrape(server)
        aborted = 'quire_requests_total{outcome="abort",route="/v1/completions"}'
        assert after[aborted] - before[aborted] == STREAMS
        for name, value in baseline.items():
            wait_until(
                lambda name=name, value=value: prometheus.number(name) == value,
                3 * prometheus.scrape_interval_s,
                f"{name} is {value} in Prometheus too ({took:.1f} s in the server)",
            )
    assert server.post(prompt="def", max_tokens=4).status_code == 200


def test_a_scrape_does_not_wait_for_an_engine_that_stands_still_and_the_queues_age_grows(
    server: ServerProcess,
) -> None:
    wait_until(server.is_idle, 60, "idle before")
    with Streams(server, 24, max_tokens=900):
        wait_until(lambda: gauges(server)["quire_requests_waiting"] >= 8, 30, "a queue")
        engine = server.engine_pid()
        os.kill(engine, signal.SIGSTOP)
        try:
            seen = []
            for _ in range(3):  # each comes back although the engine cannot answer
                asked = time.monotonic()
                age = scrape(server)["quire_queue_age_seconds"]
                seen.append((asked, age, time.monotonic()))
                time.sleep(0.5)
        finally:
            os.kill(engine, signal.SIGCONT)
    (first_asked, first, first_came), (last_asked, last, last_came) = seen[0], seen[-1]
    assert last_asked - first_came - 0.01 <= last - first <= last_came - first_asked + 0.01
    wait_until(server.is_idle, 60, "idle after")
