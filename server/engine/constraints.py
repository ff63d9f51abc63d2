"""The seam of token constraints: what restricts a sequence's next token by those before it.

A grammar or a schema is followed outside of the engine. The engine asks two things of it, row by
row, and so a constrained sequence costs the others nothing:

    waits    while a step is planned: must the sequence's last token be known first? Then it has no
             row in a step that is planned ahead, and the others have theirs.
    masks    between the forward pass and the sampling: which tokens may each row choose? The device
             computes meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from typing import Protocol

from server.engine.sequence import Sequence
from server.engine.step import ScheduledRow

Masks = dict[int, bytes]


class TokenConstraints(Protocol):
    def waits(self, sequence: Sequence) -> bool:
        """The next token depends on the last one. Asked while that one is being chosen."""
        ...

    def masks(self, rows: Rows[ScheduledRow]) -> Masks | None:
        """By row, a bit for each token id, lowest first: 1 where it may be chosen. A row that is
        left out chooses freely; None where all do. Of rows that wait, every token is known."""
        ...


class Unconstrained:
    """Implements TokenConstraints for an engine whose requests choose freely."""

    def waits(self, sequence: Sequence) -> bool:
        return False

    def masks(self, rows: Rows[ScheduledRow]) -> Masks | None:
        return None
