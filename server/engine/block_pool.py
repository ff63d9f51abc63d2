"""BlockPool: which block ids are free, idle or held, and by how many.

    blank   no content worth keeping; handed out first
    idle    nobody holds it, but the prefix cache knows its content; the least recently released
            is evicted when no blank block is left
    held    counted references, from block tables and from releases that wait for a step in flight

An OrderedDict is the O(1) queue that idle blocks need: a prefix hit takes one from the middle.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import Protocol

from server.engine.block_time import BlockTime


class OutOfBlocks(Exception):
    """Fewer blocks can be handed out than were asked for. Nothing has changed."""


class BlockError(Exception):
    """A block was released or shared that the caller cannot hold. Nothing has changed."""


class Contents(Protocol):
    """What the pool asks about a block's content."""

    def holds(self, block_id: int) -> bool:
        """The block's content can be found again, so the block is worth keeping."""
        ...

    def evict(self, block_id: int) -> None:
        """The block is about to be overwritten: forget it."""
        ...


class BlockPool:
    """``time`` knows how long each holder has had each block."""

    def __init__(
        self, num_blocks: int, contents: Contents, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.num_blocks = num_blocks
        self.time = BlockTime(num_blocks, clock)
        self._contents = contents
        self._references = [0] * num_blocks
        self._blank = deque(range(num_blocks))
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def num_blank(self) -> int:
        return len(self._blank)

    @property
    def num_idle(self) -> int:
        return len(self._idle)

    @property
    def num_available(self) -> int:
        """Blocks that ``allocate`` could hand out."""
        return len(self._blank) + len(self._idle)

    @property
    def num_held(self) -> int:
        return self.num_blocks - self.num_available

    @property
    def blank_ids(self) -> tuple[int, ...]:
        return tuple(self._blank)

    @property
    def idle_ids(self) -> tuple[int, ...]:
        """In the order of eviction."""
        return tuple(self._idle)

    def num_references(self, block_id: int) -> int:
        return self._references[block_id]

    def num_idle_among(self, block_ids: Sequence[int]) -> int:
        return sum(block_id in self._idle for block_id in block_ids)

    def allocate(self, count: int) -> list[int]:
        """``count`` blocks with one reference each, evicting idle ones where blank ones run out.

        Raises:
            OutOfBlocks: fewer than ``count`` are blank or idle.
        """
        if count > self.num_available:
            raise OutOfBlocks(f"{count} blocks wanted, {self.num_available} available")
        block_ids = [self._take_one() for _ in range(count)]
        self.bring_up_to_now(block_ids)
        for block_id in block_ids:
            self._references[block_id] = 1
        return block_ids

    def _take_one(self) -> int:
        if self._blank:
            return self._blank.popleft()
        block_id, _ = self._idle.popitem(last=False)
        self._contents.evict(block_id)
        return block_id

    def share(self, block_ids: Sequence[int]) -> None:
        """One more reference to each of these held or idle blocks.

        Raises:
            BlockError: one of them is blank or not of this pool.
        """
        for block_id in block_ids:
            self._check_id(block_id)
            if not self._references[block_id] and block_id not in self._idle:
                raise BlockError(f"block {block_id} is blank and cannot be shared")
        self.bring_up_to_now(block_ids)
        for block_id in block_ids:
            self._idle.pop(block_id, None)
            self._references[block_id] += 1

    def release(self, block_ids: Sequence[int]) -> None:
        """One reference less to each, in this order; those without any become idle or blank.

        Raises:
            BlockError: a block would lose more references than it has (a double free), or is not
                of this pool.
        """
        for block_id, count in Counter(block_ids).items():
            self._check_id(block_id)
            if count > self._references[block_id]:
                held = self._references[block_id]
                raise BlockError(f"block {block_id} released {count} times, held {held} times")
        self.bring_up_to_now(block_ids)
        for block_id in block_ids:
            self._references[block_id] -= 1
            if not self._references[block_id]:
                self._retire(block_id)

    def bring_up_to_now(self, block_ids: Sequence[int]) -> None:
        """What ``time`` says of these blocks is then true of this moment."""
        self.time.advance(block_ids, self._references)

    def _retire(self, block_id: int) -> None:
        if self._contents.holds(block_id):
            self._idle[block_id] = None
        else:
            self._blank.append(block_id)

    def blank_idle(self) -> None:
        """Idle blocks lose their content: for a reset of the prefix cache."""
        self._blank.extend(self._idle)
        self._idle.clear()

    def _check_id(self, block_id: int) -> None:
        if not 0 <= block_id < self.num_blocks:
            raise BlockError(f"block {block_id} is not one of this pool's {self.num_blocks}")
