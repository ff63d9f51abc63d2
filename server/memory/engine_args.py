"""EngineArgs: what was asked of an engine. Standard library only: every command reads it."""

from __future__ import annotations

from dataclasses import dataclass

from server.errors import StartupError

MAX_MODEL_LEN = 2**24  # tokens: no published context comes near it
LEAST_PROMPT_TOKENS = 16  # of a step by default, beside a token of each sequence
USUAL_TOKENS = 512  # of a sequence, where a CPU's KV cache is sized by itself
MAX_QUEUED_REQUESTS = 256
QUEUE_TIMEOUT_S = 60


@dataclass(frozen=True, slots=True)
class EngineArgs:
    """What the operator asked for, by the names of the options: None or "auto" where it was left.

    ``backend`` is None until placement has decided, where it was left to that; ``cpu_level`` is the
    instruction level that a CPU's own kernels must run, ``kv_cache_dtype`` the name of the format
    (weights.formats) of the KV cache, None for the model's. Sizes are in bytes, times in seconds.
    Of ``quire plan`` alone are: ``ranks``, the number of devices that share each layer, of which
    one is planned; and ``whole_load``, which asks, where both sizes are given, for a cache that
    holds ``max_num_seqs`` sequences of ``max_model_len`` tokens at once; without it, one at least,
    which is what a server needs to start.
    """

    device: str = "auto"
    backend: str | None = None
    dtype: str = "auto"
    quantization: str | None = None
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    block_size: int | None = None
    batch_invariant: bool = False
    kv_cache_dtype: str | None = None
    kv_cache_memory: int | None = None
    prefix_caching: bool = True
    max_queued_requests: int = MAX_QUEUED_REQUESTS
    queue_timeout: float = QUEUE_TIMEOUT_S
    threads: int | None = None
    cpu_level: str | None = None
    ranks: int = 1
    whole_load: bool = False

    @property
    def is_whole_load(self) -> bool:
        given = self.max_num_seqs is not None and self.max_model_len is not None
        return self.whole_load and given

    @property
    def least_sequences(self) -> int:
        """Sequences of max_model_len tokens that the cache must hold at once."""
        return (self.max_num_seqs or 1) if self.is_whole_load else 1


def refuse_few_tokens(max_num_batched_tokens: int, max_num_seqs: int) -> None:
    """
    Raises:
        StartupError: a step has fewer tokens than sequences.
    """
    if max_num_batched_tokens < max_num_seqs:
        raise StartupError(
            f"--max-num-batched-tokens {max_num_batched_tokens} is below --max-num-seqs "
            f"{max_num_seqs}: every running sequence needs one token a step"
        )
