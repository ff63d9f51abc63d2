"""A real Prometheus scrapes a real server under load, and every query of a dashboard has data.

One server and one Prometheus for the whole file, with traffic that ends in every way that needs no
fault of ours, and a KV cache so small that sequences are preempted.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from deploy.grafana.generate import FOLDER
from deploy.recorded import read_rules
from server.memory.kinds import MemoryKind
from tests.deploy.deploy_tools import ROOT, needed
from tests.deploy.load import Load
from tests.deploy.real_prometheus import RealPrometheus, Variables
from tests.e2e.server_process import ServerProcess, wait_until

Json = dict[str, Any]
DEMO = ROOT / "weights" / "demo" / "checkpoint"
DASHBOARDS = {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}
PANELS = [
    pytest.param(name, target, id=f"{name}-{panel['title']}-{target['refId']}")
    for name, dashboard in DASHBOARDS.items()
    for panel in dashboard["panels"]
    for target in panel.get("targets", ())
]
# Of a cache in 16 bits half the bytes: little enough that requests are preempted.
OPTIONS = {"max-num-seqs": 8, "kv-cache-memory": "2MiB", "max-model-len": 512}
CLIENTS = 16
ENDS = ("stop", "length", "abort", "invalid")
SEEN_S = 60.0  # what a time series panel is asked for

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    log = tmp_path_factory.mktemp("scraped") / "server.log"
    options = {**OPTIONS, "served-model-name": DEMO.name}
    with ServerProcess(DEMO, log, **options) as running:
        yield running


@pytest.fixture(scope="module")
def prometheus(
    server: ServerProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RealPrometheus]:
    """Has scraped the server under load, recorded its rules, and goes on with both."""
    folder = tmp_path_factory.mktemp("prometheus")
    address = f"127.0.0.1:{server.port}"
    with RealPrometheus(folder, address) as running, Load(server, CLIENTS) as load:
        wait_until(lambda: server.metric("quire_preemptions_total") > 0, 60, "a preemption")
        for name in read_rules()[0]:
            wait_until(lambda name=name: has_value(running.now(name)), 60, f"{name} is recorded")
        yield running
    assert load.failures == []


@pytest.fixture(scope="module")
def variables(prometheus: RealPrometheus) -> Variables:
    found = Variables(prometheus)
    found.take(DASHBOARDS["quire-memory"]["templating"]["list"])
    return found


def has_value(series: list[Json]) -> bool:
    """Whether there is a number: a share of nothing is a series too, but shows nothing."""
    values = [
        value for one in series for _, value in one.get("values", [one.get("value", (0, "NaN"))])
    ]
    return any(math.isfinite(float(value)) for value in values)


def legend(target: Json, labels: dict[str, str]) -> str:
    """What tells a series from the others: the words below a graph, the labels in a table's row."""
    form = target["legendFormat"]
    if not form or target["format"] == "table":
        return str(labels)
    return re.sub(r"\{\{(\w+)\}\}", lambda found: labels[found[1]], form)


def test_the_variables_are_filled_from_what_was_scraped(
    variables: Variables, prometheus: RealPrometheus
) -> None:
    assert variables.values["job"] == "(quire)"
    assert variables.values["model"] == f"({DEMO.name})"
    assert variables.fill('x{instance=~"$instance"}').count("127") == 1
    assert prometheus.number(variables.fill('count(up{instance=~"$instance"})')) == 1


@pytest.mark.parametrize(("dashboard", "target"), PANELS)
def test_every_query_of_a_dashboard_returns_data(
    prometheus: RealPrometheus, variables: Variables, dashboard: str, target: Json
) -> None:
    query = variables.fill(target["expr"])
    assert "$" not in query
    series = prometheus.now(query) if target["instant"] else prometheus.over(query, SEEN_S)
    assert has_value(series), f"{query}: {series[:2]}"
    legends = [legend(target, one["metric"]) for one in series]
    assert len(set(legends)) == len(legends), f"{query}: {legends}"


def test_the_kinds_add_up_to_the_device_as_prometheus_has_them(prometheus: RealPrometheus) -> None:
    assert prometheus.number("count(quire_memory_bytes)") == len(MemoryKind)
    difference = "sum(quire_memory_bytes) - sum(quire_memory_total_bytes)"
    series = prometheus.over(difference, SEEN_S)
    assert {float(value) for one in series for _, value in one["values"]} == {0.0}


def test_the_cache_is_cut_as_its_labels_say(prometheus: RealPrometheus) -> None:
    (info,) = prometheus.now("quire_kv_cache_config_info")
    blocks, size = (int(info["metric"][name]) for name in ("num_gpu_blocks", "block_size"))
    assert prometheus.number("sum(quire_kv_blocks)") == blocks
    assert prometheus.number('quire_kv_tokens{state="capacity"}') == blocks * size


def test_the_load_was_of_every_kind(prometheus: RealPrometheus) -> None:
    happened = [f'sum(quire_requests_total{{outcome="{name}"}})' for name in ENDS]
    happened += ["quire_preemptions_total", "quire_prefix_cache_hits_total"]
    for query in (*happened, "max_over_time(quire_queue_age_seconds[2m])"):
        wait_until(lambda query=query: prometheus.number(query) > 0, 30, query)
    assert prometheus.number('sum(quire_requests_total{outcome="error"})') == 0


def test_no_rule_fails_and_nothing_is_alarmed_that_did_not_happen(
    prometheus: RealPrometheus,
) -> None:
    def evaluated() -> list[Json]:
        return [rule for group in prometheus.ask("rules")["groups"] for rule in group["rules"]]

    wait_until(lambda: all(rule["health"] != "unknown" for rule in evaluated()), 30, "evaluated")
    rules = evaluated()
    recorded, alerts = read_rules()
    assert {rule["name"] for rule in rules} == {*recorded, *(alert.name for alert in alerts)}
    assert {rule["name"]: rule.get("lastError") for rule in rules if rule["health"] != "ok"} == {}
    firing = {rule["name"] for rule in rules if rule.get("state") == "firing"}
    # The load is too much for this server on purpose.
    assert firing <= {"QuireQueueAge", "QuirePreemptions", "QuireKVCacheNearlyFull"}


def test_promtool_has_nothing_to_say_about_the_metrics(server: ServerProcess) -> None:
    promtool = needed("promtool", "prometheus")
    text = httpx.get(f"{server.base_url}/metrics", timeout=10).content
    done = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, timeout=30, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_a_scrape_is_quick_while_the_server_is_busy(
    prometheus: RealPrometheus, record_property: pytest.RecordProperty, tmp_path: Path
) -> None:
    """Prometheus's own clock. The bound for the middle one leaves room for a busy machine; a
    scrape that waited for the engine would take a step or more each time."""
    median = prometheus.number('quantile_over_time(0.5, scrape_duration_seconds{job="quire"}[5m])')
    least = prometheus.number('min_over_time(scrape_duration_seconds{job="quire"}[5m])')
    record_property("scrape_seconds_median", median)
    record_property("scrape_seconds_least", least)
    assert least < 0.05
    assert median < 0.1
    assert prometheus.number('min_over_time(up{job="quire"}[5m])') == 1
