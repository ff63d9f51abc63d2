"""The registry is what the exporter exports: no metric more, none less, none different."""

from __future__ import annotations

import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from server.api.schema.requests import Route
from server.engine.events import StepStats
from server.host_budget import HostBudget
from server.memory.accounting.reading import NAMES, unflatten
from server.metrics.gauges import GaugeSources, ServedModel
from server.metrics.prometheus import PrometheusMetrics
from server.metrics.registry import GENERATING_ROUTES, METRICS
from server.metrics.spec import Label, MetricSpec, MetricType, Unit
from server.metrics.stats import Outcome, RequestRecord

MODEL = ServedModel(
    "demo", "bf16", "none", "1.0", block_size=16, num_blocks=2560, cache_dtype="int8"
)
NOW_S = 1_000.0
SUFFIXES = {Unit.BYTES: "bytes", Unit.SECONDS: "seconds", Unit.RATIO: "ratio"}


def exporter(**engine: int) -> PrometheusMetrics:
    reading = unflatten({name: i for i, name in enumerate(NAMES, start=1)})
    return PrometheusMetrics(
        GaugeSources(
            engine=lambda: {"blocks_total": 4, **engine},
            engine_up=lambda: True,
            memory=lambda: reading,
            planned=lambda: {"weights": 11},
            weights=lambda: [("norm", "bf16", 5)],
            host_bytes=lambda: 77,
            api_budget=HostBudget(1000).reading,
            device="cpu",
            model=MODEL,
            clock=lambda: NOW_S,
        )
    )


def used() -> PrometheusMetrics:
    metrics = exporter()
    metrics.observe_finish(
        RequestRecord("r", GENERATING_ROUTES[0], Outcome.STOP, 200, ttft_s=1, tpot_s=1)
    )
    metrics.observe_http("/memory", "GET", 200)
    metrics.observe_inter_token(0.1)
    metrics.observe_step(StepStats(1, 1, 1, 1, 1, 1, 1, 0.1, 0.1, 0.1, (0.5,), 1))
    return metrics


def families() -> dict[str, object]:
    text = used().render().decode()
    return {family.name: family for family in text_string_to_metric_families(text)}


def exposed_name(metric: MetricSpec) -> str:
    return metric.name.removesuffix("_total")


def test_what_is_exported_is_what_the_registry_lists() -> None:
    assert set(families()) == {exposed_name(metric) for metric in METRICS}


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_each_has_the_type_the_help_and_the_labels_of_the_registry(metric: MetricSpec) -> None:
    family = families()[exposed_name(metric)]
    assert (family.type, family.documentation) == (metric.type, metric.help)
    assert family.samples
    assert {sample.name for sample in family.samples} == set(metric.series_names)
    for sample in family.samples:
        labels = dict(sample.labels)
        assert ("le" in labels) == sample.name.endswith("_bucket")
        labels.pop("le", None)
        assert set(labels) == set(metric.label_names)
        for label in metric.labels:
            assert label.values is None or labels[label.name] in label.values


def test_names_say_their_unit() -> None:
    for metric in METRICS:
        base = metric.name.removesuffix("_total").removesuffix("_info")
        suffix = SUFFIXES.get(metric.unit)
        ends = [end for end in SUFFIXES.values() if base.endswith(f"_{end}")]
        assert ends == ([suffix] if suffix else []), metric.name
        assert re.fullmatch(r"quire_[a-z0-9_]+", metric.name)
    assert len({metric.name for metric in METRICS}) == len(METRICS)


NOUNS = {Unit.BYTES: "bytes", Unit.SECONDS: "seconds", Unit.RATIO: "share", Unit.TOKENS: "token"}


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_each_help_is_a_sentence_that_names_the_unit_and_the_states(
    metric: MetricSpec,
) -> None:
    """Grafana shows the help alone, beside a name that may be cut off."""
    assert metric.help.endswith(".")
    assert metric.help[0].isupper() or metric.help[0].isdigit()
    assert len(metric.help.split()) >= 6
    assert NOUNS.get(metric.unit, "") in metric.help.lower()
    states = [label for label in metric.labels if label.name in ("state", "reason", "phase")]
    assert all(value in metric.help for label in states for value in label.values or ())


def test_the_routes_that_generate_are_those_of_the_api() -> None:
    assert set(GENERATING_ROUTES) == {route.value for route in Route}


@pytest.mark.parametrize(
    ("name", "type", "buckets"),
    [
        ("quire_things", MetricType.COUNTER, ()),
        ("quire_things_total", MetricType.GAUGE, ()),
        ("quire_things_seconds", MetricType.HISTOGRAM, ()),
        ("quire_things", MetricType.GAUGE, (1.0,)),
    ],
)
def test_a_name_that_does_not_say_its_type_is_refused(
    name: str, type: MetricType, buckets: tuple[float, ...]
) -> None:
    with pytest.raises(ValueError, match=name):
        MetricSpec(name, type, "help", Unit.EVENTS, (Label("x"),), buckets)


def value(metrics: PrometheusMetrics, name: str) -> float:
    text = metrics.render().decode()
    (found,) = (
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    )
    return float(found)


def test_the_queues_age_is_from_the_oldest_arrival_to_now() -> None:
    assert value(exporter(oldest_queued_at_us=970_500_000), "quire_queue_age_seconds") == 29.5
    assert value(exporter(oldest_queued_at_us=0), "quire_queue_age_seconds") == 0
    ahead = exporter(oldest_queued_at_us=1_000_000_001)  # came between the two readings
    assert value(ahead, "quire_queue_age_seconds") == 0


def test_a_gateway_finds_how_the_cache_is_cut_in_labels() -> None:
    text = exporter().render().decode()
    labels = 'block_size="16",cache_dtype="int8",num_gpu_blocks="2560"'
    line = f"quire_kv_cache_config_info{{{labels}}} 1.0"
    assert line in text.splitlines()


def test_a_scrape_of_a_busy_server_is_quick_because_it_is_small() -> None:
    """Its time is a benchmark's: python -m server.bench books."""
    metrics = used()
    for status in range(200, 250):
        for route in ("/v1/completions", "/v1/chat/completions", "/metrics", "/memory"):
            metrics.observe_http(route, "POST", status)
    assert len(metrics.render().splitlines()) < 1000
