"""Every metric of Quire, as data. The exporter is made from this list, and so are the dashboards.

A metric that is not here does not exist: the exporter has no other names, and a dashboard or a rule
that asks for one does not pass its check.
"""

from __future__ import annotations

from server.host_budget import Use
from server.memory.accounting.reading import KV_PARTS, PARTS
from server.memory.backends.registry import devices
from server.memory.kinds import MemoryKind
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

_DEVICE = Label("device", devices)
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
    "Completion and chat requests that have ended, by route and by how they ended: stop, "
    "length, abort (client disconnected), invalid (4xx), overloaded (429, or 503 for lack of "
    "room) or error (5xx). Rises by one when a request ends.",
    Unit.REQUESTS,
    Label("route", GENERATING_ROUTES),
    Label("outcome", tuple(Outcome)),
)
HTTP_REQUESTS = _counter(
    "quire_http_requests_total",
    "HTTP responses sent, on all routes, by route, method and status code. Requests that "
    "match no route have the route unmatched.",
    Unit.REQUESTS,
    Label("route"),
    Label("method"),
    Label("status"),
)
# At rest these two are the sums of the records of requests, and so of the usage in their answers.
PROMPT_TOKENS = _counter(
    "quire_prompt_tokens_total",
    "Prompt tokens handed to the engine, cached ones included. Rises when a request is handed "
    "over, once for all its choices.",
    Unit.TOKENS,
)
GENERATION_TOKENS = _counter(
    "quire_generation_tokens_total",
    "Output tokens that became part of a response. Rises as each is written: over all "
    "choices, of aborted and failed requests too, up to the token that completes a stop "
    "string.",
    Unit.TOKENS,
)
DISCARDED_TOKENS = _counter(
    "quire_tokens_discarded_total",
    "Output tokens that were computed and thrown away: their sequence had ended (a stop "
    "string, an end that was seen one step late) or had been preempted.",
    Unit.TOKENS,
)
PREFIX_QUERIES = _counter(
    "quire_prefix_cache_queries_total",
    "Tokens looked up in the prefix cache. Rises when a sequence is scheduled for the first "
    "time or again after a preemption, by all tokens that it has then.",
    Unit.TOKENS,
)
PREFIX_HITS = _counter(
    "quire_prefix_cache_hits_total",
    "Tokens found in the prefix cache and not computed again. Divide its rate by that of "
    "quire_prefix_cache_queries_total for the hit rate.",
    Unit.TOKENS,
)
PREEMPTIONS = _counter(
    "quire_preemptions_total",
    "Sequences that lost their KV cache blocks to others and are computed again later. Rises "
    "when the KV cache is too full for the running batch.",
    Unit.EVENTS,
)
RESTARTS = _counter(
    "quire_engine_restarts_total",
    "Engine processes started to replace one that died. Rises by one per restart; the first "
    "start does not count.",
    Unit.EVENTS,
)
STEPS = _counter(
    "quire_engine_steps_total",
    "Engine steps that ended, failed ones included. One step runs the model once over the "
    "running batch.",
    Unit.STEPS,
)
STEP_TOKENS = _counter(
    "quire_engine_step_tokens_total",
    "Tokens computed by engine steps, by phase: prompt (prefill, recomputation after a "
    "preemption included) or decode.",
    Unit.TOKENS,
    Label("phase", STEP_PHASES),
)

QUEUE_SECONDS = _seconds(
    "quire_request_queue_seconds",
    "Seconds from a request's arrival in the engine until one of its sequences is first "
    "scheduled. One observation per prompt.",
)
TTFT_SECONDS = _seconds(
    "quire_time_to_first_token_seconds",
    "Seconds from a request's arrival at the server to its first output token (TTFT). One "
    "observation when a request ends.",
)
INTER_TOKEN_SECONDS = _seconds(
    "quire_inter_token_latency_seconds",
    "Seconds between two consecutive output tokens of one choice (ITL). Tokens that arrive "
    "together share the time equally.",
    _INTER_TOKEN,
)
TPOT_SECONDS = _seconds(
    "quire_time_per_output_token_seconds",
    "Mean seconds per output token of a request after the first token of each choice (TPOT). "
    "One observation when a request ends.",
    _INTER_TOKEN,
)
REQUEST_SECONDS = _seconds(
    "quire_request_seconds",
    "Seconds from a request's arrival at the server to the end of its response, for requests "
    "that reached the engine.",
)
PROMPT_LENGTH = _tokens(
    "quire_request_prompt_tokens",
    "Prompt tokens per request, over all its prompts. One observation when a request ends.",
)
GENERATION_LENGTH = _tokens(
    "quire_request_generation_tokens",
    "Output tokens per request, over all its choices. One observation when a request ends.",
)
TOKENS_PER_STEP = _tokens(
    "quire_step_tokens", "Tokens computed per engine step, prompt and decode together."
)
STEP_SECONDS = _seconds(
    "quire_step_seconds",
    "Seconds per engine step: from its start, or from the end of the step before it where two "
    "overlap, until its results are handled.",
    _INTER_TOKEN,
)
FORWARD_SECONDS = _seconds(
    "quire_step_forward_seconds",
    "Seconds per engine step in the model's forward pass. A step that chooses tokens in the same "
    "call (native kernels, every row decodes) has them here.",
    _INTER_TOKEN,
)
SAMPLE_SECONDS = _seconds(
    "quire_step_sample_seconds", "Seconds per engine step in sampling.", _INTER_TOKEN
)

# -- where the engine stands now ------------------------------------------------------------------

ENGINE_UP = _gauge(
    "quire_engine_up",
    "1 while the engine accepts requests and makes progress, 0 while it loads, restarts, "
    "stands still or is dead.",
    Unit.FLAG,
)
REQUESTS_RUNNING = _gauge(
    "quire_requests_running",
    "Requests with at least one sequence in the running batch.",
    Unit.REQUESTS,
)
REQUESTS_WAITING = _gauge(
    "quire_requests_waiting",
    "Requests in the queue: none of their sequences is in the running batch.",
    Unit.REQUESTS,
)
QUEUE_AGE = _gauge(
    "quire_queue_age_seconds",
    "Seconds since the arrival of the oldest request that has not been scheduled yet; 0 when "
    "there is none.",
    Unit.SECONDS,
)
SEQUENCES_RUNNING = _gauge(
    "quire_sequences_running",
    "Sequences in the running batch. A request has one per choice.",
    Unit.SEQUENCES,
)
SEQUENCES_WAITING = _gauge(
    "quire_sequences_waiting",
    "Sequences in the queue, by reason: queued (not started) or preempted (started, to be "
    "computed again).",
    Unit.SEQUENCES,
    Label("reason", ("queued", "preempted")),
)
WAITING_TOKENS = _gauge(
    "quire_waiting_prompt_tokens",
    "Tokens of the sequences in the queue: their prompts, and the output so far of preempted ones.",
    Unit.TOKENS,
)
FAILED_STEPS = _counter(
    "quire_engine_failed_steps_total",
    "Engine steps that raised an error since the engine process started.",
    Unit.STEPS,
)
KV_USAGE = _gauge(
    "quire_kv_cache_usage_ratio",
    "Share of the KV cache's blocks that running sequences hold, from 0 to 1. Cached prefixes "
    "that can be evicted do not count.",
    Unit.RATIO,
)
KV_BLOCKS = _gauge(
    "quire_kv_blocks",
    "KV cache blocks by state: live (held by sequences), cached (prefixes that can be "
    "evicted) or free.",
    Unit.BLOCKS,
    Label("state", ("live", "cached", "free")),
)
KV_TOKENS = _gauge(
    "quire_kv_tokens",
    "Token slots of the KV cache by state: capacity (all), reserved (in blocks that sequences "
    "hold) or filled (of those, holding a token).",
    Unit.TOKENS,
    Label("state", ("capacity", "reserved", "filled")),
)

# -- what memory is for ---------------------------------------------------------------------------

MEMORY = _gauge(
    "quire_memory_bytes",
    "Bytes held now on the device, by kind. All kinds, free and unaccounted included, add up "
    "to quire_memory_total_bytes.",
    Unit.BYTES,
    _DEVICE,
    _KIND,
)
MEMORY_PEAK = _gauge(
    "quire_memory_peak_bytes",
    "Most bytes held at any reading since the engine started, by kind.",
    Unit.BYTES,
    _DEVICE,
    _KIND,
)
MEMORY_PLANNED = _gauge(
    "quire_memory_planned_bytes",
    "Bytes that the memory plan reserved at start, by kind. Compare with quire_memory_bytes.",
    Unit.BYTES,
    _DEVICE,
    _KIND,
)
MEMORY_PARTS = _gauge(
    "quire_memory_part_bytes",
    "Bytes of the parts of a kind that are measured separately. The KV cache's parts are "
    "quire_kv_bytes.",
    Unit.BYTES,
    _DEVICE,
    _KIND,
    Label("part", tuple(sorted({part for kind in KINDS_WITH_PARTS for part in PARTS[kind]}))),
)
MEMORY_ESTIMATED = _gauge(
    "quire_memory_estimated",
    "1 where a kind's figure is an estimate because the device's driver does not report it, "
    "otherwise 0.",
    Unit.FLAG,
    _DEVICE,
    _KIND,
)
MEMORY_TOTAL = _gauge(
    "quire_memory_total_bytes",
    "Bytes of memory of the device: a GPU's memory, or on a CPU the smaller of RAM and the "
    "container's limit.",
    Unit.BYTES,
    _DEVICE,
)
KV_BYTES = _gauge(
    "quire_kv_bytes",
    "Bytes of the KV cache by use: active (tokens of sequences), tail_waste (empty slots of "
    "their blocks), cached (prefixes that can be evicted) or free.",
    Unit.BYTES,
    Label("use", tuple(KV_PARTS)),
)
WEIGHTS = _gauge(
    "quire_weights_bytes",
    "Bytes of the model's parameters as loaded, by component and number format.",
    Unit.BYTES,
    _DEVICE,
    Label("component", tuple(Component)),
    Label("dtype", lambda: (*FORMATS, *QUANTISED)),
)
HOST_MEMORY = _gauge(
    "quire_host_memory_bytes",
    "Bytes of host memory: the resident sets of the API and engine processes, and the pinned "
    "and shared parts of the engine's.",
    Unit.BYTES,
    Label("what", ("api_process_resident", "engine_process_resident", "pinned", "shared")),
)
API_MEMORY = _gauge(
    "quire_api_memory_bytes",
    "Bytes of the API process's memory counted for clients before they are taken, by use: "
    "bodies, parsed requests, unread events, and work (parsing, templates, tokenization).",
    Unit.BYTES,
    Label("use", tuple(Use)),
)
API_MEMORY_BUDGET = _gauge(
    "quire_api_memory_budget_bytes",
    "Most bytes that quire_api_memory_bytes may reach over all uses (--api-memory). Requests "
    "that exceed it get 503.",
    Unit.BYTES,
)
API_MEMORY_PEAK = _gauge(
    "quire_api_memory_peak_bytes",
    "Most bytes that quire_api_memory_bytes has reached over all uses since the server started.",
    Unit.BYTES,
)
ALLOCATOR = _gauge(
    "quire_allocator_bytes",
    "Bytes of the device's memory allocator by state: reserved (taken from the device), "
    "in_use (given to tensors) or largest_free (largest free piece that it holds).",
    Unit.BYTES,
    _DEVICE,
    Label("state", ("reserved", "in_use", "largest_free")),
)

# -- facts that stand in labels -------------------------------------------------------------------

MODEL_INFO = _gauge(
    "quire_model_info",
    "The served model's name, number formats and server version as labels. The value is always 1.",
    Unit.FLAG,
    Label("model"),
    Label("dtype", tuple(FORMATS)),
    Label("quantization", lambda: ("none", *QUANTISED)),
    Label("version"),
)
# The first two labels are named as the Kubernetes Gateway API inference extension reads them, on
# every device.
KV_CACHE_INFO = _gauge(
    "quire_kv_cache_config_info",
    "Tokens per KV cache block, number of blocks and format of the numbers as labels, on any "
    "device. The value is always 1.",
    Unit.FLAG,
    Label("block_size"),
    Label("num_gpu_blocks"),
    Label("cache_dtype", lambda: (*FORMATS, *QUANTISED)),
)

# All of the above: a list by hand could forget one.
METRICS: tuple[MetricSpec, ...] = tuple(
    value for value in tuple(globals().values()) if isinstance(value, MetricSpec)
)
