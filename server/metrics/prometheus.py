"""The Prometheus exporter: counters and histograms of this process, gauges read at each scrape.

The only importer of prometheus_client. Its registry is its own: no process or platform collectors,
no globals. Names, labels and buckets are those of server.metrics.registry. Every label set is fixed
before the first request. Counters live in the API process, so they survive a restart of the engine.
Times are seconds, sizes bytes, ratios 0..1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from server.engine.events import StepStats
from server.metrics import registry
from server.metrics.gauges import GaugeSources, Samples, read_gauges
from server.metrics.spec import MetricSpec, MetricType
from server.metrics.stats import Outcome, RequestRecord


class PrometheusMetrics:
    """Implements RequestMetrics and StepMetrics, and renders the exposition text."""

    def __init__(self, sources: GaugeSources) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Gauges(sources))
        self._requests = self._counter(registry.REQUESTS)
        self._http = self._counter(registry.HTTP_REQUESTS)
        self._prompt_tokens = self._counter(registry.PROMPT_TOKENS)
        self._generated = self._counter(registry.GENERATION_TOKENS)
        self._discarded = self._counter(registry.DISCARDED_TOKENS)
        self._queried = self._counter(registry.PREFIX_QUERIES)
        self._hits = self._counter(registry.PREFIX_HITS)
        self._preemptions = self._counter(registry.PREEMPTIONS)
        self._restarts = self._counter(registry.RESTARTS)
        self._steps = self._counter(registry.STEPS)
        self._step_tokens = self._counter(registry.STEP_TOKENS)
        self._queue = self._histogram(registry.QUEUE_SECONDS)
        self._ttft = self._histogram(registry.TTFT_SECONDS)
        self._itl = self._histogram(registry.INTER_TOKEN_SECONDS)
        self._tpot = self._histogram(registry.TPOT_SECONDS)
        self._e2e = self._histogram(registry.REQUEST_SECONDS)
        self._prompt_length = self._histogram(registry.PROMPT_LENGTH)
        self._generation_length = self._histogram(registry.GENERATION_LENGTH)
        self._tokens_per_step = self._histogram(registry.TOKENS_PER_STEP)
        self._step_seconds = self._histogram(registry.STEP_SECONDS)
        self._forward_seconds = self._histogram(registry.FORWARD_SECONDS)
        self._sample_seconds = self._histogram(registry.SAMPLE_SECONDS)
        for phase in registry.STEP_PHASES:
            self._step_tokens.labels(phase)
        for route in registry.GENERATING_ROUTES:
            for outcome in Outcome:
                self._requests.labels(route, str(outcome))

    def render(self) -> bytes:
        """The exposition text (format 0.0.4). Never waits for the engine."""
        return generate_latest(_WithoutCreated(self._registry))

    def observe_finish(self, record: RequestRecord) -> None:
        self._requests.labels(record.route, str(record.outcome)).inc()
        if record.ttft_s is not None:
            self._ttft.observe(record.ttft_s)
        if record.tpot_s is not None:
            self._tpot.observe(record.tpot_s)
        if record.prompt_tokens:
            self._e2e.observe(record.e2e_s)
            self._prompt_length.observe(record.prompt_tokens)
            self._generation_length.observe(record.completion_tokens)

    def observe_prompt(self, count: int) -> None:
        self._prompt_tokens.inc(count)

    def observe_completion(self, count: int) -> None:
        self._generated.inc(count)

    def observe_inter_token(self, seconds: float, count: int = 1) -> None:
        for _ in range(count):
            self._itl.observe(seconds)

    def observe_http(self, route: str, method: str, status: int) -> None:
        self._http.labels(route, method, str(status)).inc()

    def observe_step(self, stats: StepStats) -> None:
        self._steps.inc()
        self._step_tokens.labels("prompt").inc(stats.num_prompt_tokens)
        self._step_tokens.labels("decode").inc(stats.num_decode_tokens)
        self._tokens_per_step.observe(stats.num_prompt_tokens + stats.num_decode_tokens)
        self._preemptions.inc(stats.num_preemptions)
        self._discarded.inc(stats.num_discarded_tokens)
        self._queried.inc(stats.prefix_queried_tokens)
        self._hits.inc(stats.prefix_hit_tokens)
        self._step_seconds.observe(stats.step_seconds)
        self._forward_seconds.observe(stats.forward_seconds)
        self._sample_seconds.observe(stats.sample_seconds)
        for seconds in stats.queue_seconds:
            self._queue.observe(seconds)

    def observe_engine_restart(self) -> None:
        self._restarts.inc()

    def _counter(self, metric: MetricSpec) -> Counter:
        return Counter(metric.name, metric.help, metric.label_names, registry=self._registry)

    def _histogram(self, metric: MetricSpec) -> Histogram:
        return Histogram(
            metric.name,
            metric.help,
            metric.label_names,
            buckets=metric.buckets,
            registry=self._registry,
        )


class _WithoutCreated(CollectorRegistry):
    """The same metrics without the ``_created`` series that the library adds to each counter."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__()
        self._all = registry

    def collect(self) -> Iterator[Metric]:
        for metric in self._all.collect():
            kept = Metric(metric.name, metric.documentation, metric.type, metric.unit)
            kept.samples = [s for s in metric.samples if not s.name.endswith("_created")]
            yield kept


class _Gauges(Collector):
    """Everything that has a value now, taken from its source at the moment of the scrape."""

    def __init__(self, sources: GaugeSources) -> None:
        self._sources = sources

    def describe(self) -> Iterable[Metric]:
        return ()  # nothing is read before the first scrape

    def collect(self) -> Iterator[Metric]:
        for metric, samples in read_gauges(self._sources):
            yield _family(metric, samples)


def _family(metric: MetricSpec, samples: Samples) -> Metric:
    """A count that the engine process keeps is read like a gauge, and is a counter all the same."""
    counts = metric.type is MetricType.COUNTER
    kind = CounterMetricFamily if counts else GaugeMetricFamily
    family = kind(metric.name, metric.help, labels=metric.label_names)
    for labels, value in samples:
        family.add_metric(labels, value)
    return family
