"""The same facts under the names that each server gives them in /metrics. Data.

A fact is looked up as the sum of all samples of a name whose labels match. What a server does not
tell stays out of the report.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Name:
    """A metric, the labels that must match, and the factor that makes it the fact's unit."""

    metric: str
    labels: tuple[tuple[str, str], ...] = ()
    factor: float = 1.0


@dataclass(frozen=True, slots=True)
class Dialect:
    """``marks`` begins every metric of this server."""

    server: str
    marks: str
    gauges: dict[str, Name]
    counters: dict[str, Name]
    memory: str | None = None  # a gauge with a label ``kind``
    queue: str | None = None  # a histogram's buckets: seconds from arrival to the first step
    # Gauges that must be back where they were when nothing runs any more.
    baseline: tuple[str, ...] = ("requests_running", "requests_waiting", "kv_usage")

    @property
    def metrics(self) -> tuple[str, ...]:
        """All names that are read."""
        names = {name.metric for name in (*self.gauges.values(), *self.counters.values())}
        return tuple(sorted(names | {name for name in (self.memory, self.queue) if name}))


QUIRE = Dialect(
    "Quire",
    "quire_",
    gauges={
        "requests_running": Name("quire_requests_running"),
        "requests_waiting": Name("quire_requests_waiting"),
        "kv_usage": Name("quire_kv_cache_usage_ratio"),
        "kv_tokens_reserved": Name("quire_kv_tokens", (("state", "reserved"),)),
        "kv_tokens_filled": Name("quire_kv_tokens", (("state", "filled"),)),
        "kv_tokens_capacity": Name("quire_kv_tokens", (("state", "capacity"),)),
    },
    counters={
        "prompt_tokens": Name("quire_prompt_tokens_total"),
        "generation_tokens": Name("quire_generation_tokens_total"),
        "preemptions": Name("quire_preemptions_total"),
        "prefix_hits": Name("quire_prefix_cache_hits_total"),
        "prefix_queries": Name("quire_prefix_cache_queries_total"),
        "queue_seconds": Name("quire_request_queue_seconds_sum"),
    },
    queue="quire_request_queue_seconds_bucket",
    memory="quire_memory_bytes",
    baseline=("requests_running", "requests_waiting", "kv_usage", "kv_tokens_filled"),
)

VLLM = Dialect(
    "vLLM",
    "vllm:",
    gauges={
        "requests_running": Name("vllm:num_requests_running"),
        "requests_waiting": Name("vllm:num_requests_waiting"),
        "kv_usage": Name("vllm:kv_cache_usage_perc"),
    },
    counters={
        "prompt_tokens": Name("vllm:prompt_tokens_total"),
        "generation_tokens": Name("vllm:generation_tokens_total"),
        "preemptions": Name("vllm:num_preemptions_total"),
        "prefix_hits": Name("vllm:prefix_cache_hits_total"),
        "prefix_queries": Name("vllm:prefix_cache_queries_total"),
        "queue_seconds": Name("vllm:request_queue_time_seconds_sum"),
    },
    queue="vllm:request_queue_time_seconds_bucket",
)

LLAMA_CPP = Dialect(
    "llama.cpp",
    "llamacpp:",
    gauges={
        "requests_running": Name("llamacpp:requests_processing"),
        "requests_waiting": Name("llamacpp:requests_deferred"),
        "kv_usage": Name("llamacpp:kv_cache_usage_ratio"),
        "kv_tokens_filled": Name("llamacpp:kv_cache_tokens"),
    },
    counters={
        "prompt_tokens": Name("llamacpp:prompt_tokens_total"),
        "generation_tokens": Name("llamacpp:tokens_predicted_total"),
    },
    # Its slots keep what they have computed, for the next request that begins alike.
    baseline=("requests_running", "requests_waiting"),
)

DIALECTS = (QUIRE, VLLM, LLAMA_CPP)
