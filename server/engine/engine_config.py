"""EngineConfig: every size that an engine is built with, decided, in parts that are passed on as
they are.

    EngineArgs (asked) -- memory.planner.resolve_args.resolve_engine --> EngineConfig (decided)

        model: weights and kernels      cache: the pool      scheduler: steps, rows, the queue

The planner and the runner take it whole, the scheduler its own part. It crosses to the engine
process as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from server.engine.request import AnswerLimits
from server.units import ceil_div


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """In which numbers the model is held, and on what it runs.

    ``format`` is that of weights and activations; ``quantization`` that of the matrices that a
    layer multiplies by, where it is another. ``backend`` is the name of its record;
    ``batch_invariant``, which a GPU heeds, asks for answers that are the same bits in any batch.
    Plans alone may have several ``ranks`` that share each layer, of which these are one's sizes.
    ``num_threads`` compute where the backend is a CPU's, and ``cpu_level`` is its kernels'
    instruction level where one was asked for.
    """

    format: str
    backend: str
    quantization: str | None = None
    batch_invariant: bool = False
    ranks: int = 1
    num_threads: int = 8
    cpu_level: str | None = None


@dataclass(frozen=True, slots=True)
class CacheConfig:
    """The KV cache: blocks of so many tokens, and the format of its elements, which only plans
    have other than the model's. ``prefix_caching`` keeps the blocks of prefixes that ended."""

    block_size: int
    num_blocks: int
    format: str
    prefix_caching: bool = True


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """What a step and a queue may hold, in the units that its names say.

    Raises:
        ValueError: a limit on what is computed or queued is below 1, or one on preemptions below 0.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    max_logit_rows: int  # rows x vocabulary of logits that may exist at once
    max_queued_requests: int
    max_queued_tokens: int
    queue_timeout_s: float
    max_preemptions: int = 8  # of one sequence; after that it is protected
    eos_token_ids: tuple[int, ...] = field(default=())
    max_logprobs: int = 20  # alternatives reported beside a token: buffers are that wide
    answers: AnswerLimits | None = None  # None: the host's memory is the caller's matter

    def __post_init__(self) -> None:
        for name in (
            "max_num_seqs",
            "max_num_batched_tokens",
            "max_model_len",
            "max_logit_rows",
            "max_queued_requests",
            "max_queued_tokens",
        ):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        if self.max_preemptions < 0:
            raise ValueError(f"max_preemptions is {self.max_preemptions}; it must not be negative")

    @property
    def logit_rows(self) -> int:
        """The most rows of logits that a step can meet at once."""
        return min(self.max_logit_rows, self.max_num_batched_tokens)


@dataclass(frozen=True, slots=True)
class EngineConfig:
    model: ModelConfig
    cache: CacheConfig
    scheduler: SchedulerConfig

    @property
    def max_blocks_per_row(self) -> int:
        return ceil_div(self.scheduler.max_model_len, self.cache.block_size)
