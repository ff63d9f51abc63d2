"""Every metric of Quire, as data. The exporter is made from this list, and so are the dashboards.

A metric that is not here does not exist: the exporter has no other names, and a dashboard or a rule
that asks for one does not pass its check.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from server.host_budget import Use
from server.memory.layout import MemoryKind
from server.memory.reading import KV_PARTS, PARTS
from server.metrics.spec import Label, MetricSpec, MetricType, Unit
from server.metrics.stats import Outcome
from weights.formats import FORMATS, QUANTISED
from weights.inventory import Component

GENERATING_ROUTES = ("/v1/completions", "/v1/chat/completions")
STEP_PHASES = ("prompt", "decode")

_LATENCY = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_INTER_TOKEN = (
    *(0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05),
    *(0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2.5),
)
_LENGTHS = tuple(2**power for power in range(0, 18))

_DEVICE = Label("device")
_KIND = Label("kind", tuple(MemoryKind))

# Those that quire_memory_part_bytes has. The parts of the KV cache have a metric of their own.
KINDS_WITH_PARTS = tuple(kind for kind in PARTS if kind is not MemoryKind.KV_CACHE)


def _counter(name: str, help: str, unit: Unit, *labels: Label) -> MetricSpec:
    return MetricSpec(name, MetricType.COUNTER, help, unit, labels)


def _gauge(name: str, help: str, unit: Unit, *labels: Label) -> MetricSpec:
    return MetricSpec(name, MetricType.GAUGE, help, unit, labels)


def _seconds(name: str, help: str, buckets: tuple[float, ...] = _LATENCY) -> MetricSpec:
    return MetricSpec(name, MetricType.HISTOGRAM, help, Unit.SECONDS, buckets=buckets)


def _tokens(name: str, help: str) -> MetricSpec:
    return MetricSpec(name, MetricType.HISTOGRAM, help, Unit.TOKENS, buckets=_LENGTHS)


# -- requests, counted in the API process: they survive a restart of the engine -------------------

REQUESTS = _counter(
    "quire_requests_total",
    "Requests by how they ended",
    Unit.REQUESTS,
    Label("route", GENERATING_ROUTES),
    Label("outcome", tuple(Outcome)),
)
HTTP_REQUESTS = _counter(
    "quire_http_requests_total",
    "HTTP answers",
    Unit.REQUESTS,
    Label("route"),
    Label("method"),
    Label("status"),
)
# At rest these two are the sums of the records of requests, and so of the usage in their answers.
PROMPT_TOKENS = _counter(
    "quire_prompt_tokens_total",
    "Prompt tokens, counted when a request is handed to the engine, once for all its choices",
    Unit.TOKENS,
)
GENERATION_TOKENS = _counter(
    "quire_generation_tokens_total",
    "Tokens of answers, each counted once as it is written: of all choices, of aborted and failed "
    "requests, up to the token that completes a stop string",
    Unit.TOKENS,
)
DISCARDED_TOKENS = _counter(
    "quire_tokens_discarded_total",
    "Tokens computed after an end that was found out late",
    Unit.TOKENS,
)
PREFIX_QUERIES = _counter(
    "quire_prefix_cache_queries_total", "Prompt tokens looked up", Unit.TOKENS
)
PREFIX_HITS = _counter(
    "quire_prefix_cache_hits_total", "Prompt tokens found in the cache", Unit.TOKENS
)
PREEMPTIONS = _counter(
    "quire_preemptions_total",
    "Sequences that gave up their blocks to be computed again",
    Unit.EVENTS,
)
RESTARTS = _counter("quire_engine_restarts_total", "Starts of a new engine process", Unit.EVENTS)
STEPS = _counter("quire_engine_steps_total", "Steps of the engine", Unit.STEPS)
STEP_TOKENS = _counter(
    "quire_engine_step_tokens_total",
    "Tokens computed in steps",
    Unit.TOKENS,
    Label("phase", STEP_PHASES),
)

QUEUE_SECONDS = _seconds("quire_request_queue_seconds", "Wait for the first step")
TTFT_SECONDS = _seconds("quire_time_to_first_token_seconds", "Arrival to first token")
INTER_TOKEN_SECONDS = _seconds(
    "quire_inter_token_latency_seconds", "Between tokens of a choice", _INTER_TOKEN
)
TPOT_SECONDS = _seconds(
    "quire_time_per_output_token_seconds", "A request's mean after its first", _INTER_TOKEN
)
REQUEST_SECONDS = _seconds("quire_request_seconds", "Arrival to last byte")
PROMPT_LENGTH = _tokens("quire_request_prompt_tokens", "Prompt tokens of a request")
GENERATION_LENGTH = _tokens("quire_request_generation_tokens", "Tokens generated for a request")
TOKENS_PER_STEP = _tokens("quire_step_tokens", "Tokens computed in one step")
STEP_SECONDS = _seconds("quire_step_seconds", "One step", _INTER_TOKEN)
FORWARD_SECONDS = _seconds("quire_step_forward_seconds", "A step's forward pass", _INTER_TOKEN)
SAMPLE_SECONDS = _seconds("quire_step_sample_seconds", "A step's sampling", _INTER_TOKEN)

# -- where the engine stands now ------------------------------------------------------------------

ENGINE_UP = _gauge("quire_engine_up", "1 while the engine takes requests", Unit.FLAG)
REQUESTS_RUNNING = _gauge(
    "quire_requests_running", "Requests with a sequence that computes", Unit.REQUESTS
)
REQUESTS_WAITING = _gauge("quire_requests_waiting", "Requests that wait", Unit.REQUESTS)
QUEUE_AGE = _gauge(
    "quire_queue_age_seconds",
    "Since the arrival of the oldest request that waits for its first step; 0: none waits",
    Unit.SECONDS,
)
SEQUENCES_RUNNING = _gauge(
    "quire_sequences_running", "Sequences in the running batch", Unit.SEQUENCES
)
SEQUENCES_WAITING = _gauge(
    "quire_sequences_waiting",
    "Sequences that wait: not begun, or to be computed again",
    Unit.SEQUENCES,
    Label("reason", ("queued", "preempted")),
)
WAITING_TOKENS = _gauge(
    "quire_waiting_prompt_tokens", "Prompt tokens of waiting requests", Unit.TOKENS
)
FAILED_STEPS = _counter(
    "quire_engine_failed_steps_total",
    "Steps that failed since the engine's start",
    Unit.STEPS,
)
KV_USAGE = _gauge("quire_kv_cache_usage_ratio", "Blocks in use of all blocks", Unit.RATIO)
KV_BLOCKS = _gauge(
    "quire_kv_blocks",
    "Blocks of the KV cache by state",
    Unit.BLOCKS,
    Label("state", ("live", "cached", "free")),
)
KV_TOKENS = _gauge(
    "quire_kv_tokens",
    "Token slots: all, in active blocks, holding a token",
    Unit.TOKENS,
    Label("state", ("capacity", "reserved", "filled")),
)

# -- what memory is for ---------------------------------------------------------------------------

MEMORY = _gauge("quire_memory_bytes", "Held now", Unit.BYTES, _DEVICE, _KIND)
MEMORY_PEAK = _gauge("quire_memory_peak_bytes", "The most held so far", Unit.BYTES, _DEVICE, _KIND)
MEMORY_PLANNED = _gauge(
    "quire_memory_planned_bytes", "Reserved by the plan", Unit.BYTES, _DEVICE, _KIND
)
MEMORY_PARTS = _gauge(
    "quire_memory_part_bytes",
    "Parts of a kind that are measured by themselves",
    Unit.BYTES,
    _DEVICE,
    _KIND,
    Label("part", tuple(sorted({part for kind in KINDS_WITH_PARTS for part in PARTS[kind]}))),
)
MEMORY_ESTIMATED = _gauge(
    "quire_memory_estimated",
    "1 where a kind's figure is an estimate, because the device does not tell",
    Unit.FLAG,
    _DEVICE,
    _KIND,
)
MEMORY_TOTAL = _gauge("quire_memory_total_bytes", "The device", Unit.BYTES, _DEVICE)
KV_BYTES = _gauge(
    "quire_kv_bytes", "The KV cache by use", Unit.BYTES, Label("use", tuple(KV_PARTS))
)
WEIGHTS = _gauge(
    "quire_weights_bytes",
    "Parameters as held",
    Unit.BYTES,
    _DEVICE,
    Label("component", tuple(Component)),
    Label("dtype", (*FORMATS, *QUANTISED)),
)
HOST_MEMORY = _gauge(
    "quire_host_memory_bytes",
    "The host's memory: processes' resident sets, pinned and shared parts",
    Unit.BYTES,
    Label("what", ("api_process_resident", "engine_process_resident", "pinned", "shared")),
)
API_MEMORY = _gauge(
    "quire_api_memory_bytes",
    "What requests may take of the API process, by use: counted before it is taken",
    Unit.BYTES,
    Label("use", tuple(Use)),
)
API_MEMORY_BUDGET = _gauge(
    "quire_api_memory_budget_bytes",
    "The most that quire_api_memory_bytes may come to in all; past it requests get 503",
    Unit.BYTES,
)
API_MEMORY_PEAK = _gauge(
    "quire_api_memory_peak_bytes", "The most that it came to in all", Unit.BYTES
)
ALLOCATOR = _gauge(
    "quire_allocator_bytes",
    "What the allocator has taken, gives out, and could give out in one piece",
    Unit.BYTES,
    _DEVICE,
    Label("state", ("reserved", "in_use", "largest_free")),
)

# -- facts that stand in labels -------------------------------------------------------------------

MODEL_INFO = _gauge(
    "quire_model_info",
    "The model that is served; always 1",
    Unit.FLAG,
    Label("model"),
    Label("dtype", tuple(FORMATS)),
    Label("quantization", ("none", *QUANTISED)),
    Label("version"),
)
# The two labels are named as the Kubernetes Gateway API inference extension reads them, on every
# device.
KV_CACHE_INFO = _gauge(
    "quire_kv_cache_config_info",
    "Tokens in a block and blocks in all, as labels; always 1",
    Unit.FLAG,
    Label("block_size"),
    Label("num_gpu_blocks"),
)

# All of the above: a list by hand could forget one.
METRICS: tuple[MetricSpec, ...] = tuple(
    value for value in tuple(globals().values()) if isinstance(value, MetricSpec)
)
BY_NAME: Mapping[str, MetricSpec] = MappingProxyType({metric.name: metric for metric in METRICS})
