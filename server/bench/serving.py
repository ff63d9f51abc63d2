"""One batch served without HTTP, for the benches: requests that start together, and its steps.

Prompts are random and each its own, so that no prefix is shared; nothing ends before its last
token; no limit binds but the runner's own.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

from server.engine.core import EngineCore
from server.engine.engine_config import CacheConfig, EngineConfig, ModelConfig, SchedulerConfig
from server.engine.events import StepStats
from server.engine.kv_spec import KVCacheSpec
from server.engine.request import EngineRequest, SamplingParams
from server.engine.step_plan import Executor
from server.execution.build import BuiltRunner
from server.units import ceil_div


@dataclass(frozen=True, slots=True)
class Batch:
    """``size`` requests that start together, lengths in tokens."""

    size: int
    prompt_tokens: int
    output_tokens: int

    @property
    def num_tokens(self) -> int:
        """Of each request."""
        return self.prompt_tokens + self.output_tokens

    def prompts(self, vocab_size: int, seed: int) -> list[tuple[int, ...]]:
        draw = random.Random(seed)
        return [
            tuple(draw.randrange(vocab_size) for _ in range(self.prompt_tokens))
            for _ in range(self.size)
        ]

    def requests(self, vocab_size: int, seed: int) -> list[EngineRequest]:
        sampling = SamplingParams(
            seed=0, temperature=0.0, max_tokens=self.output_tokens, ignore_eos=True
        )
        return [
            EngineRequest(f"bench-{index}", tokens, sampling)
            for index, tokens in enumerate(self.prompts(vocab_size, seed))
        ]


@dataclass(frozen=True, slots=True)
class Served:
    """A batch's steps, and seconds from submission to its first token."""

    steps: tuple[StepStats, ...]
    first_token: float

    @property
    def prefill_steps(self) -> list[StepStats]:
        return [step for step in self.steps if step.num_prompt_tokens]

    def full_decode_steps(self, batch: int) -> list[StepStats]:
        """Steps in which every row of the batch decodes and none is in its prompt."""
        return [
            step for step in self.steps if not step.num_prompt_tokens and step.num_rows == batch
        ]


def serve(
    executor: Executor, kv: KVCacheSpec, config: SchedulerConfig, requests: Sequence[EngineRequest]
) -> Served:
    """Serves ``requests`` through the loop that serving uses, under the limits of ``config``.

    Raises RuntimeError where one is refused or ends in an error: its figures would mean nothing.
    """
    core = EngineCore(executor, kv, config, prefix_caching=False)
    submitted = time.perf_counter()
    core.submit(requests)
    steps: list[StepStats] = []
    first = None
    while core.has_work:
        frame = core.step()
        if frame is None:
            continue
        failures = [one.message for one in frame.refused]
        failures += [one.error_message or "" for one in frame.choices if one.error_code is not None]
        if failures:
            raise RuntimeError(f"a request of the bench failed: {failures[0]}")
        if first is None and any(choice.token_ids for choice in frame.choices):
            first = time.perf_counter() - submitted
        if frame.stats is not None:
            steps.append(frame.stats)
    return Served(tuple(steps), first or 0.0)


def serve_batch(built: BuiltRunner, batch: Batch, seed: int) -> Served:
    """As ``serve``, by a runner that was built."""
    requests = batch.requests(built.model.vocab_size, seed)
    return serve(built.runner, built.kv, built.layout.config.scheduler, requests)


def decode_step_bytes(built: BuiltRunner, batch: Batch) -> int:
    """Bytes that an average decode step has to read: weights once, and all rows' contexts.

    Of an embedding that is not tied only a row is read; a tied one is the unembedding.
    """
    weights = built.held.weights()
    total = sum(weights.values()) - weights.get("position", 0)
    if not built.model.tied_unembedding:
        total -= weights["embedding"]
    context = batch.prompt_tokens + batch.output_tokens // 2
    return total + batch.size * context * built.kv.groups[0].bytes_per_token


def bench_config(
    model: ModelConfig, batches: Sequence[Batch], *, block_size: int, max_num_batched_tokens: int
) -> EngineConfig:
    """Just what the largest of ``batches`` needs. Raises ValueError for none."""
    seqs = max(batch.size for batch in batches)
    length = max(batch.num_tokens for batch in batches)
    blocks = max(batch.size * ceil_div(batch.num_tokens, block_size) for batch in batches)
    return EngineConfig(
        model,
        CacheConfig(block_size, blocks, model.format, prefix_caching=False),
        SchedulerConfig(
            max_num_seqs=seqs,
            max_num_batched_tokens=max(max_num_batched_tokens, seqs),
            max_model_len=length,
            max_logit_rows=seqs,
            max_queued_requests=seqs,
            max_queued_tokens=seqs * length,
            queue_timeout_s=3600.0,
            max_logprobs=0,
        ),
    )
