"""KVCacheSpec: the shape of the paged KV cache, in integers only.

Built from a ModelSpec by server.memory.layout. One pool of equal pages serves every group: a
group's block is one page. A page holds ``block_size`` tokens of all the layers in the group, and
its block table entry names the same block id in each of those layers' tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class GroupKind(StrEnum):
    FULL = "full"
    WINDOW = "window"
    LATENT = "latent"
    CROSS = "cross"


@dataclass(frozen=True, slots=True)
class KVCacheGroup:
    """Layers that share one block table. ``bytes_per_token`` counts all layers of the group."""

    kind: GroupKind
    layer_ids: tuple[int, ...]
    bytes_per_token: int
    block_size: int  # tokens
    window: int | None = None  # tokens; window groups only

    @property
    def bytes_per_block(self) -> int:
        return self.bytes_per_token * self.block_size

    def blocks_of(self, tokens: int) -> int:
        """Blocks that a sequence of so many tokens holds. Behind a window they are freed; a window
        that starts within a block still holds that one."""
        blocks = -(-tokens // self.block_size)
        if self.window is None:
            return blocks
        return min(blocks, -(-(self.window - 1) // self.block_size) + 1)


@dataclass(frozen=True, slots=True)
class KVCacheSpec:
    groups: tuple[KVCacheGroup, ...]
    num_blocks: int  # pages in the pool

    def __post_init__(self) -> None:
        if not self.groups:
            raise ValueError("a KV cache needs at least one group")
        if self.num_blocks < 1:
            raise ValueError(f"a KV cache needs at least one block, not {self.num_blocks}")

    @property
    def page_bytes(self) -> int:
        """Bytes of one page: the largest group's block. Smaller groups waste their tail."""
        return max(group.bytes_per_block for group in self.groups)

    def blocks_of(self, tokens: int) -> int:
        """Pages that a sequence of so many tokens holds in all groups."""
        return sum(group.blocks_of(tokens) for group in self.groups)

    @property
    def total_bytes(self) -> int:
        return self.page_bytes * self.num_blocks
