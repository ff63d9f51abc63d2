"""Turns: whatever the priorities, a quarter of the work goes in the order of arrival.

The priority key says who is next (server.engine.sequence). Alone it would let a stream of urgent
requests keep an older one waiting for ever. So the tokens are counted that later arrivals compute
while an older one waits: they are a debt, and every token that is computed in the order of arrival
pays for ``OVERTAKING`` of them. Beyond what ``FREE_STEPS`` steps can compute, the next row goes to
whoever came first.

So before a request gets a row, those that came after it compute at most ``OVERTAKING`` times what
those before it do, and once the free steps and the rest of what runs then. It waits for no more
than four times the work that it would wait for without priorities, and these. Counted is what is
computed and not what was asked for, because max_tokens says little about an answer's length.
"""

from __future__ import annotations

from server.engine.sequence import Sequence

OVERTAKING = 3
FREE_STEPS = 4  # a few urgent requests among others go first and owe nothing


class Turns:
    """``debt`` is in tokens, ``step_tokens`` the most that a step computes. The debt is forgiven
    when none waits."""

    def __init__(self, step_tokens: int) -> None:
        self._free = FREE_STEPS * step_tokens
        self.debt = 0

    @property
    def is_by_arrival(self) -> bool:
        """The next row goes to the first to arrive, and not to the first in priority order."""
        return self.debt > self._free

    def count(self, sequence: Sequence, num_tokens: int, oldest: Sequence | None) -> None:
        """``sequence`` computes tokens in a step, while ``oldest`` is the first that waits."""
        if oldest is None:
            self.debt = 0
        elif sequence.arrival > oldest.arrival:
            self.debt += num_tokens
        else:
            self.debt = max(0, self.debt - OVERTAKING * num_tokens)
