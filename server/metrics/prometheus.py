"""The Prometheus exporter: counters and histograms of this process, gauges read at each scrape.

The only importer of prometheus_client. Its registry is its own: no process or platform collectors,
no globals. Every label set is fixed before the first request. Counters live in the API process, so
they survive a restart of the engine. Times are seconds, sizes bytes, ratios 0..1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from server.engine.events import StepStats
from server.metrics.stats import Outcome, RequestRecord

_LATENCY = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_INTER_TOKEN = (
    *(0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05),
    *(0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2.5),
)
_LENGTHS = tuple(2**power for power in range(0, 18))


@dataclass(frozen=True, slots=True)
class GaugeSources:
    """Where gauges come from at a scrape. Each returns at once.

    ``engine`` names are EngineGauges' fields; ``memory`` gives a reading of the accountant (empty
    before the first one), ``planned`` its planned bytes by kind and ``weights`` the measured
    (component, format, bytes). ``host_bytes`` is the API process's own resident set.
    """

    engine: Callable[[], Mapping[str, int]]
    engine_up: Callable[[], bool]
    memory: Callable[[], Mapping[str, int]]
    planned: Callable[[], Mapping[str, int]]
    weights: Callable[[], Iterable[tuple[str, str, int]]]
    host_bytes: Callable[[], int]
    device: str = "cpu"


class PrometheusMetrics:
    """Implements RequestMetrics and StepMetrics, and renders the exposition text."""

    def __init__(self, sources: GaugeSources) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Gauges(sources))
        self._requests = self._counter(
            "quire_requests", "Requests by how they ended", ["route", "outcome"]
        )
        self._http = self._counter(
            "quire_http_requests", "HTTP answers", ["route", "method", "status"]
        )
        self._prompt_tokens = self._counter("quire_prompt_tokens", "Prompt tokens of requests")
        self._generated = self._counter("quire_generation_tokens", "Tokens generated for requests")
        self._discarded = self._counter(
            "quire_tokens_discarded", "Tokens computed after an end that was found out late"
        )
        self._queried = self._counter("quire_prefix_cache_queries", "Prompt tokens looked up")
        self._hits = self._counter("quire_prefix_cache_hits", "Prompt tokens found in the cache")
        self._preemptions = self._counter(
            "quire_preemptions", "Sequences that gave up their blocks to be computed again"
        )
        self._restarts = self._counter("quire_engine_restarts", "Starts of a new engine process")
        self._steps = self._counter("quire_engine_steps", "Steps of the engine")
        self._step_tokens = self._counter(
            "quire_engine_step_tokens", "Tokens computed in steps", ["phase"]
        )
        self._queue = self._histogram("quire_request_queue_seconds", "Wait for the first step")
        self._ttft = self._histogram("quire_time_to_first_token_seconds", "Arrival to first token")
        self._itl = self._histogram(
            "quire_inter_token_latency_seconds", "Between tokens of a choice", _INTER_TOKEN
        )
        self._tpot = self._histogram(
            "quire_time_per_output_token_seconds", "A request's mean after its first", _INTER_TOKEN
        )
        self._e2e = self._histogram("quire_request_seconds", "Arrival to last byte")
        self._prompt_length = self._histogram(
            "quire_request_prompt_tokens", "Prompt tokens of a request", _LENGTHS
        )
        self._generation_length = self._histogram(
            "quire_request_generation_tokens", "Tokens generated for a request", _LENGTHS
        )
        self._tokens_per_step = self._histogram(
            "quire_step_tokens", "Tokens computed in one step", _LENGTHS
        )
        self._step_seconds = self._histogram("quire_step_seconds", "One step", _INTER_TOKEN)
        self._forward_seconds = self._histogram(
            "quire_step_forward_seconds", "A step's forward pass", _INTER_TOKEN
        )
        self._sample_seconds = self._histogram(
            "quire_step_sample_seconds", "A step's sampling", _INTER_TOKEN
        )
        for phase in ("prompt", "decode"):
            self._step_tokens.labels(phase)
        for route in ("/v1/completions", "/v1/chat/completions"):
            for outcome in Outcome:
                self._requests.labels(route, str(outcome))

    def render(self) -> bytes:
        """The exposition text (format 0.0.4). Never waits for the engine."""
        return generate_latest(_WithoutCreated(self._registry))

    def observe_finish(self, record: RequestRecord) -> None:
        self._requests.labels(record.route, str(record.outcome)).inc()
        self._prompt_tokens.inc(record.prompt_tokens)
        self._generated.inc(record.completion_tokens)
        if record.ttft_s is not None:
            self._ttft.observe(record.ttft_s)
        if record.tpot_s is not None:
            self._tpot.observe(record.tpot_s)
        if record.prompt_tokens:
            self._e2e.observe(record.e2e_s)
            self._prompt_length.observe(record.prompt_tokens)
            self._generation_length.observe(record.completion_tokens)

    def observe_inter_token(self, seconds: float, count: int = 1) -> None:
        for _ in range(count):
            self._itl.observe(seconds)

    def observe_http(self, route: str, method: str, status: int) -> None:
        self._http.labels(route, method, str(status)).inc()

    def observe_discarded(self, count: int) -> None:
        self._discarded.inc(count)

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

    def _counter(self, name: str, help: str, labels: Iterable[str] = ()) -> Counter:
        return Counter(name, help, list(labels), registry=self._registry)

    def _histogram(self, name: str, help: str, buckets: tuple[float, ...] = _LATENCY) -> Histogram:
        return Histogram(name, help, buckets=buckets, registry=self._registry)


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
        engine = self._sources.engine()
        yield _gauge("quire_engine_up", "1 while the engine takes requests", self._up())
        for name, key, help in _ENGINE:
            yield _gauge(name, help, engine.get(key, 0))
        yield _gauge("quire_kv_cache_usage_ratio", "Blocks in use of all blocks", _usage(engine))
        yield _labelled(
            "quire_kv_blocks",
            "Blocks of the KV cache by state",
            "state",
            _blocks(engine),
        )
        preempted = engine.get("sequences_preempted", 0)
        queued = engine.get("sequences_waiting", 0) - preempted
        yield _labelled(
            "quire_sequences_waiting",
            "Sequences that wait: not begun, or to be computed again",
            "reason",
            {"queued": queued, "preempted": preempted},
        )
        yield _labelled(
            "quire_kv_tokens",
            "Token slots: all, in active blocks, holding a token",
            "state",
            {state: engine.get(key, 0) for state, key in _TOKENS.items()},
        )
        yield from self._memory()

    def _up(self) -> int:
        return int(self._sources.engine_up())

    def _memory(self) -> Iterator[Metric]:
        device, reading = self._sources.device, self._sources.memory()
        planned = self._sources.planned()
        kinds = [name.removesuffix(".peak") for name in reading if name.endswith(".peak")]
        held = {kind: reading[kind] for kind in kinds}
        peak = {kind: reading[f"{kind}.peak"] for kind in kinds}
        parts = {
            name.removeprefix("kv_cache."): nbytes
            for name, nbytes in reading.items()
            if name.startswith("kv_cache.") and not name.endswith(".peak")
        }
        yield _by_kind("quire_memory_bytes", "Held now", device, held)
        yield _by_kind("quire_memory_peak_bytes", "The most held so far", device, peak)
        yield _by_kind("quire_memory_planned_bytes", "Reserved by the plan", device, planned)
        yield _labelled("quire_kv_bytes", "The KV cache by use", "use", parts)
        total = GaugeMetricFamily("quire_memory_total_bytes", "The device", labels=["device"])
        total.add_metric([device], reading.get("total", 0))
        yield total
        weights = GaugeMetricFamily(
            "quire_weights_bytes", "Parameters as held", labels=["device", "component", "dtype"]
        )
        for component, format, nbytes in self._sources.weights():
            weights.add_metric([device, component, format], nbytes)
        yield weights
        host = {
            "api_process_resident": self._sources.host_bytes(),
            "engine_process_resident": reading.get("resident", 0),
        }
        yield _labelled("quire_host_memory_bytes", "Resident sets of processes", "what", host)


_ENGINE: tuple[tuple[str, str, str], ...] = (
    ("quire_requests_running", "requests_running", "Requests with a sequence that computes"),
    ("quire_requests_waiting", "requests_waiting", "Requests that wait"),
    ("quire_sequences_running", "sequences_running", "Sequences in the running batch"),
    ("quire_waiting_prompt_tokens", "waiting_tokens", "Prompt tokens of waiting requests"),
)
_TOKENS = {
    "capacity": "kv_tokens_capacity",
    "reserved": "kv_tokens_reserved",
    "filled": "kv_tokens_filled",
}


def _blocks(engine: Mapping[str, int]) -> dict[str, int]:
    live = engine.get("blocks_active", 0) + engine.get("blocks_reserved", 0)
    return {
        "live": live,
        "cached": engine.get("blocks_cached", 0),
        "free": engine.get("blocks_free", 0),
    }


def _usage(engine: Mapping[str, int]) -> float:
    return _blocks(engine)["live"] / max(1, engine.get("blocks_total", 0))


def _gauge(name: str, help: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, help, value=value)


def _labelled(name: str, help: str, label: str, values: Mapping[str, int]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, help, labels=[label])
    for value, number in values.items():
        family.add_metric([value], number)
    return family


def _by_kind(name: str, help: str, device: str, kinds: Mapping[str, int]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, help, labels=["device", "kind"])
    for kind, nbytes in kinds.items():
        family.add_metric([device, kind], nbytes)
    return family
