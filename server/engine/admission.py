"""Admission: which requests the engine refuses, and with which message.

A submitted list is accepted or refused whole. Refused is what could never run (too long, too large
for the cache alone) and what finds the queue full. Everything accepted can run to its end, because
it fits when it is alone.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence

from server.engine.engine_config import SchedulerConfig
from server.engine.events import Refused
from server.engine.kv_cache_manager import KVCacheManager
from server.engine.queue import WaitingQueue
from server.engine.request import (
    LOGIT_BIAS,
    SAMPLING_RANGES,
    AnswerLimits,
    EngineError,
    EngineRequest,
    SamplingParams,
    Task,
)
from server.engine.response_budget import AnswerSize, answer_size
from server.engine.sequence import Request

_RETRY_AFTER_MAX = 600  # seconds
_WINDOW = 64  # steps

Problem = tuple[EngineError, str]  # and the message


class Throughput:
    """Tokens computed per second over the last steps, of which a failed one computed none."""

    def __init__(self) -> None:
        self._steps: deque[tuple[int, float]] = deque(maxlen=_WINDOW)

    def note(self, num_tokens: int, seconds: float) -> None:
        self._steps.append((num_tokens, seconds))

    def seconds_for(self, num_tokens: int) -> int:
        """Whole seconds, at least 1, that ``num_tokens`` more take at the recent rate."""
        tokens = sum(step_tokens for step_tokens, _ in self._steps)
        seconds = sum(step_seconds for _, step_seconds in self._steps)
        if not tokens:
            return 1
        return max(1, min(_RETRY_AFTER_MAX, math.ceil(num_tokens * seconds / tokens)))


class Admission:
    """``page_bytes`` are those of one KV-cache block, for what refusals say; ``tasks`` are those
    that the executor supports."""

    def __init__(
        self,
        kv: KVCacheManager,
        config: SchedulerConfig,
        waiting: WaitingQueue,
        page_bytes: int,
        tasks: frozenset[Task],
    ) -> None:
        self._kv = kv
        self._page_bytes = page_bytes
        self._config = config
        self._waiting = waiting
        self._tasks = tasks
        self.throughput = Throughput()
        self.is_open = True

    def refusal(
        self, requests: Sequence[EngineRequest], live: Mapping[str, Request]
    ) -> Refused | None:
        """Why the list is refused, or None. ``live`` are the accepted requests by id."""
        ids = tuple(request.request_id for request in requests)
        if not self.is_open:
            message = "The server is shutting down and takes no new requests."
            return Refused(ids, EngineError.SHUTTING_DOWN, message)
        if len(set(ids)) < len(ids) or any(request_id in live for request_id in ids):
            return Refused(ids, EngineError.INTERNAL, "A request id is in use already.")
        for request in requests:
            problem = self._problem_with(request)
            if problem is not None:
                return Refused(ids, *problem)
        return self._queue_refusal(ids, requests) or self._answer_refusal(ids, requests, live)

    def _problem_with(self, request: EngineRequest) -> Problem | None:
        num_prompt = len(request.prompt_token_ids)
        max_tokens = request.sampling.max_tokens
        if request.task not in self._tasks:
            return EngineError.UNSUPPORTED_TASK, (
                f"This model does not support the task {request.task}; it supports "
                f"{', '.join(sorted(self._tasks))}."
            )
        if num_prompt < 1:
            return EngineError.INVALID_REQUEST, "The prompt has no tokens; it needs at least one."
        if not 1 <= request.n <= self._config.max_num_seqs:
            return EngineError.CAPACITY, (
                f"n is {request.n}; this server runs 1 to {self._config.max_num_seqs} "
                "sequences at a time."
            )
        if num_prompt + max_tokens > self._config.max_model_len:
            return EngineError.CONTEXT_LENGTH, (
                f"The prompt has {num_prompt} tokens and max_tokens is {max_tokens}; together "
                f"they exceed the context of {self._config.max_model_len} tokens. Shorten the "
                "prompt or lower max_tokens."
            )
        return (
            _sampling_problem(request.sampling)
            or self._width_problem(request)
            or self._capacity_problem(num_prompt, max_tokens)
        )

    def _width_problem(self, request: EngineRequest) -> Problem | None:
        most = self._config.max_logprobs
        for name in ("logprobs", "prompt_logprobs"):
            asked = getattr(request.sampling, name)
            if asked is not None and asked > most:
                return EngineError.CAPACITY, (
                    f"{name} is {asked}, {8 * (1 + asked)} bytes a token; this server's buffers "
                    f"hold {8 * (1 + most)}. Ask for at most {most}."
                )
        return None

    def _capacity_problem(self, num_prompt: int, max_tokens: int) -> Problem | None:
        needed, there = self._kv.blocks_for(num_prompt + max_tokens), self._kv.pool.num_blocks
        if needed > there:
            return EngineError.CAPACITY, (
                f"The prompt has {num_prompt} tokens and max_tokens is {max_tokens}; together "
                f"they need {needed} KV-cache blocks, and the cache has {there} "
                f"({self._kv.max_tokens_alone()} tokens): {needed * self._page_bytes} bytes of "
                f"{there * self._page_bytes}. Shorten the prompt or lower max_tokens."
            )
        return self._queue_problem(num_prompt)

    def _queue_problem(self, num_prompt: int) -> Problem | None:
        if num_prompt > self._config.max_queued_tokens:
            return EngineError.CAPACITY, (
                f"The prompt has {num_prompt} tokens; the queue holds at most "
                f"{self._config.max_queued_tokens}."
            )
        return None

    def _queue_refusal(
        self, ids: tuple[str, ...], requests: Sequence[EngineRequest]
    ) -> Refused | None:
        num_requests, num_tokens = self._waiting.num_new, self._waiting.num_new_tokens
        new_tokens = sum(len(request.prompt_token_ids) for request in requests)
        if (
            num_requests + len(requests) <= self._config.max_queued_requests
            and num_tokens + new_tokens <= self._config.max_queued_tokens
        ):
            return None
        problem = self._list_problem(len(requests), new_tokens)
        if problem is not None:
            return Refused(ids, EngineError.CAPACITY, problem)
        message = (
            f"The queue is full: {num_requests} requests with {num_tokens} tokens wait, and at "
            f"most {self._config.max_queued_requests} requests with "
            f"{self._config.max_queued_tokens} tokens may. Try again later."
        )
        return Refused(
            ids, EngineError.QUEUE_FULL, message, self.throughput.seconds_for(num_tokens)
        )

    def _list_problem(self, num_requests: int, num_tokens: int) -> str | None:
        """Why the list does not fit an empty queue either: trying again would never help."""
        if num_requests > self._config.max_queued_requests:
            return (
                f"The list has {num_requests} prompts; the queue holds at most "
                f"{self._config.max_queued_requests} requests."
            )
        if num_tokens > self._config.max_queued_tokens:
            return (
                f"The list has {num_tokens} prompt tokens; the queue holds at most "
                f"{self._config.max_queued_tokens}."
            )
        return None

    def _answer_refusal(
        self,
        ids: tuple[str, ...],
        requests: Sequence[EngineRequest],
        live: Mapping[str, Request],
    ) -> Refused | None:
        """Where the list's answers cannot be held on the host: ever, or beside those under way."""
        limits = self._config.answers
        if limits is None:
            return None
        sizes = [answer_size(request) for request in requests]
        needed = sum(size.nbytes(limits) for size in sizes)
        if needed > limits.max_bytes:
            return Refused(ids, EngineError.CAPACITY, _answer_problem(sizes, needed, limits))
        open_sizes = [answer_size(one.request) for one in live.values()]
        held = sum(size.nbytes(limits) for size in open_sizes)
        if held + needed <= limits.max_bytes:
            return None
        message = (
            f"The answers in progress may take {held} bytes of the server's memory and this one "
            f"{needed}; it keeps {limits.max_bytes} for all of them. Try again later, or ask for "
            "fewer logprobs, a smaller n or fewer tokens."
        )
        tokens = sum(size.tokens for size in open_sizes)
        return Refused(ids, EngineError.QUEUE_FULL, message, self.throughput.seconds_for(tokens))


def _sampling_problem(sampling: SamplingParams) -> Problem | None:
    """What would leave float32. The API refuses it too; the engine has other clients as well."""
    for name, allowed in SAMPLING_RANGES.items():
        value = getattr(sampling, name)
        if value not in allowed:
            return EngineError.INVALID_VALUE, f"{name} must be {allowed}, not {value!r}."
    for token, bias in sampling.logit_bias:
        if bias not in LOGIT_BIAS:
            return (
                EngineError.INVALID_VALUE,
                f"logit_bias[{token}] must be {LOGIT_BIAS}, not {bias!r}.",
            )
    return None


def _answer_problem(sizes: Sequence[AnswerSize], needed: int, limits: AnswerLimits) -> str:
    return (
        f"The answer can come to {sum(size.tokens for size in sizes)} tokens and "
        f"{sum(size.numbers for size in sizes)} log-probabilities, {needed} bytes of the server's "
        f"memory, which keeps {limits.max_bytes} for all answers. Ask for fewer logprobs, a "
        "smaller n, fewer tokens or, with echo, a shorter prompt."
    )
