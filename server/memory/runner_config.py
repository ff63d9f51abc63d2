"""RunnerConfig: the sizes that a runner is made with, and attention's of them. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from kernels.footprint.attention import AttentionShape
from server.memory.kinds import ELEMENT_BYTES
from server.memory.kv_groups import windows_of
from weights.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class RunnerConfig:
    """The sizes that decide what a runner allocates. Tokens, rows and blocks; no bytes.

    ``format`` is that of weights, activations and KV cache; ``quantization`` that of the matrices
    that a layer multiplies by, where it is another. ``max_logit_rows`` bounds the rows x
    vocabulary of logits that exist at once; ``max_logprobs`` the alternatives reported per token.
    ``backend`` is the name of what the model runs on; ``batch_invariant``, which a GPU heeds, asks
    for answers that are the same bits in any batch. Plans alone may name another
    ``kv_cache_format`` than ``format``, and several ``ranks`` that share each layer, of which these
    are one's sizes.
    """

    format: str
    block_size: int
    num_blocks: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    max_logit_rows: int
    max_logprobs: int
    quantization: str | None = None
    backend: str = "cpu"
    batch_invariant: bool = False
    kv_cache_format: str | None = None
    ranks: int = 1

    @property
    def kv_format(self) -> str:
        """The format of the KV cache's elements."""
        return self.kv_cache_format or self.format

    @property
    def max_blocks_per_row(self) -> int:
        return math.ceil(self.max_model_len / self.block_size)

    @property
    def logit_rows(self) -> int:
        """The most rows of logits that a step can meet at once."""
        return min(self.max_logit_rows, self.max_num_batched_tokens)


def attention_shape(model: ModelSpec, config: RunnerConfig) -> AttentionShape:
    """The largest step as attention sees it."""
    return AttentionShape(
        num_query_heads=model.attention.num_query_heads,
        num_kv_heads=model.attention.num_kv_heads,
        head_dim=model.attention.head_dim,
        block_size=config.block_size,
        element_bytes=ELEMENT_BYTES[config.format],
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_model_len=config.max_model_len,
        batch_invariant=config.batch_invariant,
        windows=windows_of(model),
    )
