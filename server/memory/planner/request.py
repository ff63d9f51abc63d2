"""PlanRequest: what an operator asked a memory plan for. No torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """What the operator asked for. None where auto was left; sizes in bytes.

    ``whole_load`` asks, where both sizes are given, for a cache that holds ``max_num_seqs``
    sequences of ``max_model_len`` tokens at once; without it, one at least, which is what a server
    needs to start. ``num_seqs_given`` says that ``max_num_seqs`` is not a default.
    ``format_reason`` says why ``format`` was taken, for people, where that was weighed.
    ``kv_format`` is the KV cache's where it is another than ``format``; ``ranks`` is the number of
    devices that share each layer, of which one is planned. Both are for plans only: no server
    offers them yet. ``backend`` is the name of what the model runs on.
    """

    format: str
    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int | None = None
    kv_cache_bytes: int | None = None
    quantization: str | None = None
    backend: str = "cpu"
    batch_invariant: bool = False
    kv_format: str | None = None
    ranks: int = 1
    whole_load: bool = False
    num_seqs_given: bool = False
    format_reason: str = ""

    @property
    def is_whole_load(self) -> bool:
        return self.whole_load and self.num_seqs_given and self.max_model_len is not None

    @property
    def least_sequences(self) -> int:
        """Sequences of max_model_len tokens that the cache must hold at once."""
        return self.max_num_seqs if self.is_whole_load else 1
