"""BlockPool: which block ids are free, cached or allocated, and by how many.

    free       no content worth keeping; handed out first
    cached     not held, but the prefix cache knows its content; the least recently released
               is evicted when no free block is left
    allocated  counted references, from block tables and from releases that wait for a step in
               flight

An OrderedDict is the O(1) queue that cached blocks need: a prefix hit takes one from the middle.
"""

from __future__ import annotations

import time
from array import array
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

# BlockTime: the time that blocks are held, divided evenly among their holders.
#
# A block that is held by one counts whole for it, one that k hold counts 1/k for each. So the
# shares of all holders, with the blocks that are cached and free, add up to the pool at every
# moment.
#
# For each block only one number is kept: how many seconds *one* holder has been given so far.
#
#     accrued += (now - since) / holders      whenever the number of holders changes
#
# A holder's own time is that number when it lets go less that number when it took the block. So
# sharing a prefix with a thousand others costs as much as having it alone.


class BlockTime:
    """Seconds of the clock. The pool tells it before the number of holders changes."""

    def __init__(self, num_blocks: int, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._accrued = array("d", bytes(8 * num_blocks))
        self._since = array("d", bytes(8 * num_blocks))

    def advance(self, block_ids: Iterable[int], holders: Sequence[int]) -> None:
        """Brings the blocks up to now; ``holders`` counts them by block, as they were until now."""
        now = self._clock()
        for block_id in block_ids:
            if holders[block_id]:
                self._accrued[block_id] += (now - self._since[block_id]) / holders[block_id]
            self._since[block_id] = now

    def given(self, block_ids: Iterable[int]) -> float:
        """Seconds that one holder of each has been given, up to the last ``advance``."""
        return sum(self._accrued[block_id] for block_id in block_ids)


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
        self._free = deque(range(num_blocks))
        self._cached: OrderedDict[int, None] = OrderedDict()

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_cached(self) -> int:
        return len(self._cached)

    @property
    def num_available(self) -> int:
        """Blocks that ``allocate`` could hand out."""
        return len(self._free) + len(self._cached)

    @property
    def num_allocated(self) -> int:
        return self.num_blocks - self.num_available

    @property
    def free_ids(self) -> tuple[int, ...]:
        return tuple(self._free)

    @property
    def cached_ids(self) -> tuple[int, ...]:
        """In the order of eviction."""
        return tuple(self._cached)

    def num_references(self, block_id: int) -> int:
        return self._references[block_id]

    def num_cached_among(self, block_ids: Sequence[int]) -> int:
        return sum(block_id in self._cached for block_id in block_ids)

    def allocate(self, count: int) -> list[int]:
        """``count`` blocks with one reference each, evicting cached ones where free ones run out.

        Raises:
            OutOfBlocks: fewer than ``count`` are free or cached.
        """
        if count > self.num_available:
            raise OutOfBlocks(f"{count} blocks wanted, {self.num_available} available")
        block_ids = [self._take_one() for _ in range(count)]
        self.bring_up_to_now(block_ids)
        for block_id in block_ids:
            self._references[block_id] = 1
        return block_ids

    def _take_one(self) -> int:
        if self._free:
            return self._free.popleft()
        block_id, _ = self._cached.popitem(last=False)
        self._contents.evict(block_id)
        return block_id

    def share(self, block_ids: Sequence[int]) -> None:
        """One more reference to each of these held or cached blocks.

        Raises:
            BlockError: one of them is free or not of this pool.
        """
        for block_id in block_ids:
            self._check_id(block_id)
            if not self._references[block_id] and block_id not in self._cached:
                raise BlockError(f"block {block_id} is free and cannot be shared")
        self.bring_up_to_now(block_ids)
        for block_id in block_ids:
            self._cached.pop(block_id, None)
            self._references[block_id] += 1

    def release(self, block_ids: Sequence[int]) -> None:
        """One reference less to each, in this order; those without any become cached or free.

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
            self._cached[block_id] = None
        else:
            self._free.append(block_id)

    def forget(self, block_ids: Sequence[int]) -> None:
        """These lost their content: those that were kept for it become free."""
        for block_id in block_ids:
            if block_id in self._cached:
                del self._cached[block_id]
                self._free.append(block_id)

    def drop_cached(self) -> None:
        """Cached blocks lose their content: for a reset of the prefix cache."""
        self._free.extend(self._cached)
        self._cached.clear()

    def _check_id(self, block_id: int) -> None:
        if not 0 <= block_id < self.num_blocks:
            raise BlockError(f"block {block_id} is not one of this pool's {self.num_blocks}")
