"""BlockTime: the time that blocks are held, divided evenly among their holders.

A block that is held by one counts whole for it, one that k hold counts 1/k for each. So the shares
of all holders, with the blocks that are idle and blank, add up to the pool at every moment.

For each block only one number is kept: how many seconds *one* holder has been given so far.

    accrued += (now - since) / holders      whenever the number of holders changes

A holder's own time is that number when it lets go less that number when it took the block. So
sharing a prefix with a thousand others costs as much as having it alone.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence


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
