"""Holdings: the KV cache blocks of one request, over all its choices, now and over time."""

from __future__ import annotations

from collections.abc import Iterable


class Holdings:
    """A block counts once, however many of the request's choices hold it.

    ``seconds`` adds up what the holders were given (server.engine.block_time); of blocks that are
    still held it is too little by what they were given when they were taken.
    """

    __slots__ = ("_counts", "_seconds", "peak_blocks")

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self._seconds = 0.0
        self.peak_blocks = 0

    @property
    def counts(self) -> dict[int, int]:
        """Block id -> how many choices hold it."""
        return self._counts

    def take(self, block_ids: Iterable[int], given: float) -> None:
        for block_id in block_ids:
            self._counts[block_id] = self._counts.get(block_id, 0) + 1
        self._seconds -= given
        self.peak_blocks = max(self.peak_blocks, len(self._counts))

    def let_go(self, block_ids: Iterable[int], given: float) -> None:
        for block_id in block_ids:
            if self._counts[block_id] == 1:
                del self._counts[block_id]
            else:
                self._counts[block_id] -= 1
        self._seconds += given

    def block_seconds(self, given: float) -> float:
        """Up to now; ``given`` is of the blocks held now, once for every choice that holds them."""
        return self._seconds + given if self._counts else max(0.0, self._seconds)
