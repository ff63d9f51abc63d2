"""KVCacheSpec: the shape of the paged KV cache, in integers only.

Built from a ModelSpec by server.memory.layout. One pool of equal pages serves every group: a
group's block is one page. A page holds ``block_size`` tokens of all the layers in the group, and
its block table entry names the same block id in each of those layers' tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from server.units import ceil_div

NULL_BLOCK = -1  # in a block table, in place of a block that was freed behind a window


class GroupKind(StrEnum):
    FULL = "full"
    WINDOW = "window"
    LATENT = "latent"
    CROSS = "cross"


@dataclass(frozen=True, slots=True)
class KVCacheGroup:
    """Layers that share one block table. ``bytes_per_token`` counts all layers of the group, and
    what its page has room for beside them."""

    kind: GroupKind
    layer_ids: tuple[int, ...]
    bytes_per_token: int
    block_size: int  # tokens
    window: int | None = None  # tokens; window groups only

    @property
    def bytes_per_block(self) -> int:
        return self.bytes_per_token * self.block_size

    def first_block(self, position: int) -> int:
        """Of a sequence's blocks the first one that the token at ``position``, or a later one,
        sees. Those before it are behind the window."""
        if self.window is None:
            return 0
        return max(0, position - self.window + 1) // self.block_size

    def blocks_of(self, tokens: int, chunk: int = 1) -> int:
        """The most blocks that a sequence of so many tokens holds, of which steps under way compute
        up to ``chunk``. A window that starts within a block still holds that one."""
        blocks = ceil_div(tokens, self.block_size)
        if self.window is None:
            return blocks
        seen = self.window - 1 + chunk
        return min(blocks, ceil_div(seen - 1, self.block_size) + 1)


@dataclass(frozen=True, slots=True)
class KVCacheSpec:
    groups: tuple[KVCacheGroup, ...]
    num_blocks: int  # pages in the pool

    def __post_init__(self) -> None:
        if not self.groups:
            raise ValueError("a KV cache needs at least one group")
        sizes = {group.block_size for group in self.groups}
        if len(sizes) > 1:
            raise ValueError(f"groups of one KV cache have blocks of {sorted(sizes)} tokens")
        if self.num_blocks < 1:
            raise ValueError(f"a KV cache needs at least one block, not {self.num_blocks}")

    @property
    def block_size(self) -> int:
        """Tokens of a block, in every group."""
        return self.groups[0].block_size

    @property
    def page_bytes(self) -> int:
        """Bytes of one page: the largest group's block. Smaller groups waste their tail."""
        return max(group.bytes_per_block for group in self.groups)

    def blocks_of(self, tokens: int, chunk: int = 1) -> int:
        """Pages that a sequence of so many tokens holds at most, in all groups, while steps compute
        up to ``chunk`` of them."""
        return sum(group.blocks_of(tokens, chunk) for group in self.groups)

    def blocks_at_once(self, sequences: int, tokens: int, chunk: int) -> int:
        """Pages that so many sequences of so many tokens hold at once, while a step computes
        ``chunk`` tokens of one of them, with which it comes to its length."""
        return sequences * self.blocks_of(tokens) + self._blocks_of_chunk(tokens, chunk)

    def sequences_at_once(self, tokens: int, chunk: int) -> float:
        """How many sequences the pool holds in ``blocks_at_once``."""
        left = self.num_blocks - self._blocks_of_chunk(tokens, chunk)
        return max(0, left) / self.blocks_of(tokens)

    def _blocks_of_chunk(self, tokens: int, chunk: int) -> int:
        """What a step's chunk needs beside the blocks that are held between steps."""
        return self.blocks_of(tokens, chunk) - self.blocks_of(tokens)

    @property
    def total_bytes(self) -> int:
        return self.page_bytes * self.num_blocks
