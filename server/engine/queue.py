"""WaitingQueue: sequences that want a row, by rank and by arrival.

Heaps of keys alone: a member that is removed, as an abort may remove any, is forgotten at once, and
its key is skipped when it surfaces.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from server.engine.sequence import Arrival, PriorityKey, Request, Sequence, SequenceState

_SLACK = 64  # entries of what has gone that may stay in a heap


class WaitingQueue:
    def __init__(self) -> None:
        self._members: dict[Arrival, Sequence] = {}
        self._heap: list[tuple[PriorityKey, Arrival]] = []
        self._by_arrival: list[Arrival] = []
        self._deadlines: list[tuple[float, int, Request]] = []
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
        return sequence.arrival in self._members

    def __iter__(self) -> Iterator[Sequence]:
        """In the order of rank."""
        return iter(sorted(self._members.values(), key=lambda sequence: sequence.priority_key))

    def push(self, sequence: Sequence) -> None:
        """
        Raises:
            ValueError: the sequence is in the queue.
        """
        if sequence in self:
            raise ValueError(f"{sequence!r} is in the queue already")
        self._members[sequence.arrival] = sequence
        self._count(sequence, 1)
        heapq.heappush(self._heap, (sequence.priority_key, sequence.arrival))
        heapq.heappush(self._by_arrival, sequence.arrival)
        request = sequence.request
        if not request.was_scheduled:
            heapq.heappush(self._deadlines, (request.deadline, request.arrival, request))
        self._tidy()

    def head(self) -> Sequence | None:
        """The first in priority order."""
        heap = self._heap
        while heap and heap[0][1] not in self._members:
            heapq.heappop(heap)
        return self._members[heap[0][1]] if heap else None

    def oldest(self) -> Sequence | None:
        """The first to arrive, whatever its rank."""
        heap = self._by_arrival
        while heap and heap[0] not in self._members:
            heapq.heappop(heap)
        return self._members[heap[0]] if heap else None

    def head_of(self, request: Request) -> Sequence | None:
        return next((s for s in request.sequences if s in self), None)

    def remove(self, sequence: Sequence) -> None:
        """Before the sequence changes its state.

        Raises:
            KeyError: the sequence is not in the queue.
        """
        del self._members[sequence.arrival]
        self._count(sequence, -1)

    def expired(self, now: float) -> list[Request]:
        """Requests never scheduled whose deadline has passed. Each is named once."""
        late: list[Request] = []
        while self._deadlines and self._deadlines[0][0] < now:
            request = heapq.heappop(self._deadlines)[2]
            if self._is_waiting(request):
                late.append(request)
        return late

    def _tidy(self) -> None:
        """Forgets what has gone, so that memory follows the queue's length and not its traffic."""
        bound = 2 * len(self._members) + _SLACK
        if len(self._heap) > bound:
            self._heap = sorted((s.priority_key, arrival) for arrival, s in self._members.items())
        if len(self._by_arrival) > bound:
            self._by_arrival = sorted(self._members)
        if len(self._deadlines) > bound:
            self._deadlines = [item for item in self._deadlines if self._is_waiting(item[2])]
            heapq.heapify(self._deadlines)

    def _is_waiting(self, request: Request) -> bool:
        return not request.was_scheduled and self.head_of(request) is not None

    def _count(self, sequence: Sequence, sign: int) -> None:
        self.num_tokens += sign * sequence.num_tokens
        if sequence.state is SequenceState.WAITING:
            self.num_new += sign
            self.num_new_tokens += sign * sequence.num_tokens
