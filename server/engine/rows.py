"""RowTable: which of the executor's rows are free, and which it must be told to release."""

from __future__ import annotations

import heapq
from collections.abc import Iterable


class RowTable:
    """The lowest free row is taken first, so that the rows in use stay dense."""

    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows
        self._free = list(range(num_rows))
        self._known: set[int] = set()  # rows that the executor holds state for
        self._to_release: dict[int, None] = {}

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def free_rows(self) -> tuple[int, ...]:
        return tuple(self._free)

    def is_known(self, row: int) -> bool:
        return row in self._known

    def take(self) -> int:
        return heapq.heappop(self._free)

    def mark_known(self, row: int) -> None:
        self._known.add(row)

    def give_back(self, row: int) -> None:
        """
        Raises:
            ValueError: the row is free already.
        """
        if row in self._free:
            raise ValueError(f"row {row} is given back twice")
        heapq.heappush(self._free, row)
        if row in self._known:
            self._known.remove(row)
            self._to_release[row] = None

    def release_again(self, rows: Iterable[int]) -> None:
        """After a step that raised nobody knows whether it released these."""
        self._to_release.update(dict.fromkeys(rows))

    def collect_released(self) -> tuple[int, ...]:
        """The rows to name in the next plan; named once."""
        rows = tuple(self._to_release)
        self._to_release.clear()
        return rows
