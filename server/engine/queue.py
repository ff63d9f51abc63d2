"""WaitingQueue: sequences that want a row, first in rank first.

A heap whose removed members are skipped when they surface, because an abort may take any of them.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from server.engine.sequence import LiveRequest, Rank, Sequence, SequenceState

_SLACK = 64  # entries of what has gone that may stay in a heap


class WaitingQueue:
    def __init__(self) -> None:
        self._heap: list[tuple[Rank, Sequence]] = []
        self._members: dict[Rank, Sequence] = {}
        self._deadlines: list[tuple[float, int, LiveRequest]] = []
        self.num_tokens = 0  # known tokens of all members
        self.num_new = 0  # members that are WAITING, of a request that never ran
        self.num_new_tokens = 0

    @property
    def num_preempted(self) -> int:
        return len(self._members) - self.num_new

    @property
    def oldest_new_arrival_time(self) -> float:
        """When the oldest request came that never ran; 0 where there is none.

        Members stand in the order in which they came, so what is new is met oldest first.
        """
        return next(
            (
                sequence.request.arrival_time
                for sequence in self._members.values()
                if not sequence.request.was_scheduled
            ),
            0.0,
        )

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, sequence: Sequence) -> bool:
        return self._members.get(sequence.rank) is sequence

    def __iter__(self) -> Iterator[Sequence]:
        """In the order of rank."""
        return iter(sorted(self._members.values(), key=lambda sequence: sequence.rank))

    def push(self, sequence: Sequence) -> None:
        """
        Raises:
            ValueError: the sequence is in the queue.
        """
        if sequence in self:
            raise ValueError(f"{sequence!r} is in the queue already")
        self._members[sequence.rank] = sequence
        self._count(sequence, 1)
        heapq.heappush(self._heap, (sequence.rank, sequence))
        request = sequence.request
        if not request.was_scheduled:
            heapq.heappush(self._deadlines, (request.deadline, request.arrival, request))
        self._tidy()

    def head(self) -> Sequence | None:
        while self._heap and not self._is_current(self._heap[0]):
            heapq.heappop(self._heap)
        return self._heap[0][1] if self._heap else None

    def head_of(self, request: LiveRequest) -> Sequence | None:
        return next((s for s in request.sequences if s in self), None)

    def remove(self, sequence: Sequence) -> None:
        """Before the sequence changes its state.

        Raises:
            KeyError: the sequence is not in the queue.
        """
        del self._members[sequence.rank]
        self._count(sequence, -1)

    def expired(self, now: float) -> list[LiveRequest]:
        """Requests never scheduled whose deadline has passed. Each is named once."""
        late: list[LiveRequest] = []
        while self._deadlines and self._deadlines[0][0] < now:
            request = heapq.heappop(self._deadlines)[2]
            if self._is_waiting(request):
                late.append(request)
        return late

    def _tidy(self) -> None:
        """Forgets what has gone, so that memory follows the queue's length and not its traffic."""
        bound = 2 * len(self._members) + _SLACK
        if len(self._heap) > bound:
            self._heap = [item for item in self._heap if self._is_current(item)]
            heapq.heapify(self._heap)
        if len(self._deadlines) > bound:
            self._deadlines = [item for item in self._deadlines if self._is_waiting(item[2])]
            heapq.heapify(self._deadlines)

    def _is_waiting(self, request: LiveRequest) -> bool:
        return not request.was_scheduled and self.head_of(request) is not None

    def _count(self, sequence: Sequence, sign: int) -> None:
        self.num_tokens += sign * sequence.num_tokens
        if sequence.state is SequenceState.WAITING:
            self.num_new += sign
            self.num_new_tokens += sign * sequence.num_tokens

    def _is_current(self, item: tuple[Rank, Sequence]) -> bool:
        return self._members.get(item[0]) is item[1]
