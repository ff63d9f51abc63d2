"""What queries mean, and which mean nothing."""

from __future__ import annotations

import pytest

from deploy.catalogue import NUMBER, Quantity, metric_catalogue
from deploy.promql import QueryError, meaning, selectors
from server.metrics.spec import Unit

CATALOGUE = metric_catalogue()
TARGETS = {"job", "instance"}
PER_SECOND = {"per_second": True}


@pytest.mark.parametrize(
    ("query", "quantity", "labels"),
    [
        ("quire_requests_running", Quantity(Unit.REQUESTS), TARGETS),
        ("sum (quire_requests_running)", Quantity(Unit.REQUESTS), set()),
        ("sum by (kind) (quire_memory_bytes)", Quantity(Unit.BYTES), {"kind"}),
        ("sum without (kind) (quire_memory_bytes)", Quantity(Unit.BYTES), {*TARGETS, "device"}),
        ("sum (rate(quire_requests_total[5m]))", Quantity(Unit.REQUESTS, True), set()),
        ("sum (increase(quire_preemptions_total[1h]))", Quantity(Unit.EVENTS), set()),
        (
            "histogram_quantile(0.9, sum by (le, job) (rate(quire_step_seconds_bucket[5m])))",
            Quantity(Unit.SECONDS),
            {"job"},
        ),
        (
            "sum(rate(quire_step_seconds_sum[5m])) / sum(rate(quire_step_seconds_count[5m]))",
            Quantity(Unit.SECONDS),
            set(),
        ),
        (
            "sum(rate(quire_generation_tokens_total[5m])) / sum(rate(quire_requests_total[5m]))",
            Quantity(Unit.TOKENS),
            set(),
        ),
        (
            "sum (quire_kv_tokens{state='filled'}) / sum (quire_kv_tokens{state='reserved'})",
            Quantity(Unit.RATIO),
            set(),
        ),
        ("quire_kv_cache_usage_ratio > 0.9", Quantity(Unit.RATIO), TARGETS),
        ("max (quire_queue_age_seconds) * 1000", Quantity(Unit.SECONDS), set()),
        ("sum (rate(quire_requests_total[5m])) or vector(0)", Quantity(Unit.REQUESTS, True), set()),
        ("count (quire_engine_up)", NUMBER, set()),
        ("sum (quire_engine_up)", NUMBER, set()),
        (
            "deriv(quire_host_memory_bytes[1h])",
            Quantity(Unit.BYTES, True),
            {*TARGETS, "what"},
        ),
        (
            "quire_memory_bytes * on (job, instance) group_left (model) quire_model_info",
            Quantity(Unit.BYTES),
            {*TARGETS, "device", "kind", "model"},
        ),
        ("quire_engine_up unless on (job, instance) up", Quantity(Unit.FLAG), TARGETS),
        ("max_over_time(quire_kv_cache_usage_ratio[1h:1m])", Quantity(Unit.RATIO), TARGETS),
        ("absent(quire_engine_up)", NUMBER, TARGETS),
    ],
)
def test_a_query_is_an_amount_of_something_by_labels(
    query: str, quantity: Quantity, labels: set[str]
) -> None:
    found = meaning(query, CATALOGUE)
    assert found.quantity == quantity
    assert found.labels == labels


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("sum(", "no PromQL"),
        ("quire_requests", "there is no metric 'quire_requests'"),
        ("quire_step_seconds", "there is no metric 'quire_step_seconds'"),
        ("quire_kv_blocks{kind='live'}", "quire_kv_blocks has no label 'kind'"),
        ("quire_kv_blocks{state='hot'}", "state is never 'hot'; it is one of live, cached, free"),
        ("quire_kv_blocks{state=~'live|hot'}", "state is never 'hot'"),
        ("quire_kv_blocks{state!='hot'}", "state is never 'hot'"),
        ("sum by (kind) (quire_kv_blocks)", "grouped by 'kind', which is none of"),
        ("quire_requests_total", "a counter is shown"),
        ("sum (quire_requests_total)", "take its rate() first"),
        ("max_over_time(quire_requests_total[5m])", "max_over_time() of a counter"),
        ("quire_requests_total > 1", "> of a counter"),
        ("rate(quire_requests_running[5m])", "rate() of a value: it is for counters"),
        ("rate(quire_step_seconds_bucket[5m])", "is shown"),
        ("sum (rate(quire_step_seconds_bucket[5m]))", "buckets are added up by le"),
        (
            "histogram_quantile(0.9, sum by (job) (rate(quire_step_seconds_bucket[5m])))",
            "buckets are added up by le",
        ),
        ("histogram_quantile(0.9, rate(quire_requests_total[5m]))", "histogram_quantile() is of"),
        ("max by (le) (rate(quire_step_seconds_bucket[5m]))", "buckets are added up by le"),
        ("sum (quire_kv_cache_usage_ratio)", "a sum of ratio says nothing"),
        ("sum (quire_queue_age_seconds)", "a sum of seconds says nothing"),
        ("sum (quire_kv_bytes) + sum (quire_kv_tokens)", "bytes + tokens"),
        ("sum (quire_kv_bytes) > sum (quire_kv_tokens)", "bytes > tokens"),
        ("sum (quire_kv_bytes) / sum (quire_kv_tokens)", "is not a quantity"),
        ("sum (quire_kv_bytes) * sum (quire_kv_bytes)", "is not a quantity"),
        ("sum by (use) (quire_kv_bytes) / sum (quire_memory_total_bytes)", "/ never matches"),
        ("quire_kv_bytes / on (device) quire_memory_total_bytes", "one side does not have"),
        ("stddev (quire_kv_bytes)", "stddev has no meaning here"),
        ("exp(quire_kv_bytes)", "exp() has no meaning here"),
        ("predict_linear(quire_kv_bytes[1h], 3600)", "predict_linear() has no meaning here"),
    ],
)
def test_a_query_that_cannot_be_meant_is_refused_with_the_reason(query: str, reason: str) -> None:
    with pytest.raises(QueryError) as refused:
        meaning(query, CATALOGUE)
    assert reason in str(refused.value)


def test_selectors_are_found_wherever_they_stand() -> None:
    query = 'sum by (job) (rate(a_total{x="1"}[5m])) / on (job) (b{y=~"2|3", z!="4"} > 0)'
    assert selectors(query) == [
        ("a_total", {"x": "=1"}),
        ("b", {"y": "=~2|3", "z": "!=4"}),
    ]
