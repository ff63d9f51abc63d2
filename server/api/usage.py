"""What an answer says about its cost: OpenAI's usage object, and ours inside it.

``memory`` sums over the prompts of a request; a choice is not a unit of its own, because choices
share their prompt's blocks. A block counts whole in ``peak_blocks``. In ``byte_seconds`` it is
divided by its holders at each moment, so that the figures of all requests add up to the time that
the cache was held.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from server.api.trace import RequestTrace
from server.engine.events import RequestMemory


def token_usage(prompt: int, completion: int, cached: int) -> dict[str, Any]:
    """OpenAI's object, over all prompts and choices."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def memory_usage(requests: Sequence[RequestMemory]) -> dict[str, Any]:
    """What a request has held of the KV cache, until now or its end. Bytes and seconds."""
    peak_bytes = sum(one.peak_blocks * one.block_bytes for one in requests)
    return {
        "peak_blocks": sum(one.peak_blocks for one in requests),
        "peak_bytes": peak_bytes,
        "byte_seconds": round(sum(one.block_seconds * one.block_bytes for one in requests), 3),
        "block_bytes": requests[0].block_bytes if requests else 0,
    }


def live_memory(requests: Sequence[RequestMemory]) -> dict[str, Any]:
    """The same, and what is held at this moment. ``share_bytes`` divides shared blocks."""
    return {
        "blocks": sum(one.blocks for one in requests),
        "bytes": sum(one.blocks * one.block_bytes for one in requests),
        "shared_blocks": sum(one.shared_blocks for one in requests),
        "share_bytes": round(sum(one.share * one.block_bytes for one in requests)),
        **memory_usage(requests),
    }


def timings(trace: RequestTrace) -> Mapping[str, float | None]:
    """Seconds; None for what the request has not come to."""
    ttft, queue = trace.ttft_s, trace.queue_s
    decode = None if trace.last_token_s is None or ttft is None else trace.last_token_s - ttft
    prefill = None if ttft is None or queue is None else max(0.0, ttft - queue)
    seconds = {
        "queue_seconds": queue,
        "prefill_seconds": prefill,  # with what came before the queue: reading and tokenising
        "time_to_first_token_seconds": ttft,
        "decode_seconds": decode,
        "total_seconds": trace.age_s,
    }
    return {name: None if value is None else round(value, 6) for name, value in seconds.items()}
