"""Who gives way when a running sequence needs a block and there is none.

The victim is the last in priority order, which may be the needy one itself, but never the one that
arrived first, and none that is protected: one preempted ``max_preemptions`` times comes back only
with blocks reserved for its whole length, so it needs none and is never asked for any.

What got its row in the order of arrival (server.engine.turns), and what came before that, gives way
after all others and latest first: else those that it waited for would send it back at once.

Why this always progresses: the sequence that arrived first keeps what it has. Where none is left
to give way to it, all the others are protected; they need no block, so they run to their end and
free theirs. Every other sequence gives way a bounded number of times.
"""

from __future__ import annotations

from collections.abc import Iterable

from server.engine.sequence import PriorityKey, Sequence


def is_protected(sequence: Sequence, max_preemptions: int) -> bool:
    return sequence.num_preemptions >= max_preemptions


def choose_victim(running: Iterable[Sequence], max_preemptions: int) -> Sequence | None:
    """The sequence to preempt, or None where the needy one has to wait."""
    running = list(running)
    oldest = min(running, key=lambda sequence: sequence.arrival)
    in_turn = max((s.arrival for s in running if s.is_in_turn), default=(0, 0))

    def last(sequence: Sequence) -> tuple[bool, PriorityKey]:
        is_in_turn = sequence.arrival <= in_turn
        return (not is_in_turn, (0.0, *sequence.arrival) if is_in_turn else sequence.priority_key)

    candidates = (
        sequence
        for sequence in running
        if sequence is not oldest and not is_protected(sequence, max_preemptions)
    )
    return max(candidates, key=last, default=None)
