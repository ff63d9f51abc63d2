"""Shape and scratch of paged attention, in integers: what a memory plan books. No torch.

The CPU backend of paged attention holds these between its steps of one call and nothing else of
size (kernels/cpu/attention.py tells what each is for). Temporaries of torch beyond them are the
per-operation scratch of its flash attention (a few hundred KiB a thread).
"""

from __future__ import annotations

from dataclasses import dataclass

KEY_TILE = 512  # tokens of context a step of the key loop reads; a fixed grid from position 0
QUERY_TILES = (1, 16, 128)  # queries an item may hold; a chunk is cut into these
GATHER_BYTES = 8 << 20  # most bytes of keys and values gathered at once, but for a single item
QUERY_BYTES = 8 << 20  # most bytes of queries (in float32) worked on at once, same exception


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """The facts that attention's work list and scratch are made from.

    ``element_bytes`` is the size of an element of the KV cache (and of the queries): 4 or 2.
    """

    num_query_heads: int
    num_kv_heads: int
    head_dim: int
    block_size: int
    element_bytes: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.num_query_heads % self.num_kv_heads:
            raise ValueError(
                f"num_query_heads is {self.num_query_heads}; it must be a multiple of"
                f" num_kv_heads, {self.num_kv_heads}"
            )
        if self.block_size & (self.block_size - 1):
            raise ValueError(f"block_size is {self.block_size}; it must be a power of two")

    @property
    def group(self) -> int:
        """Query heads that share one KV head."""
        return self.num_query_heads // self.num_kv_heads

    @property
    def key_tile(self) -> int:
        """Tokens of one key tile: whole blocks."""
        return max(KEY_TILE, self.block_size)


def attention_workspace_bytes(shape: AttentionShape) -> int:
    """Exact bytes of an AttentionWorkspace of this shape."""
    context = min(shape.key_tile, shape.max_model_len)
    return 2 * shape.num_kv_heads * context * shape.head_dim * shape.element_bytes
