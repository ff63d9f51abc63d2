"""Ends a run early that measures nothing: a server that refuses what the scenario asks for."""

from __future__ import annotations

from loadtest.records import RequestRecord

ENOUGH = 10
_OF_THE_MOMENT = (408, 425, 429)  # these speak of the server's state, not of the request


class Refusal:
    """Sees a server that refuses the scenario itself: its first answers say so, all of them."""

    def __init__(self) -> None:
        self._refused = 0
        self._accepted = False
        self.reason: str | None = None  # set once it is plain

    def note(self, record: RequestRecord) -> bool:
        """Whether it has just become plain."""
        if record.kind != "normal" or self._accepted or self.reason is not None:
            return False
        self._accepted = not 400 <= record.status < 500 or record.status in _OF_THE_MOMENT
        self._refused += not self._accepted
        if self._refused < ENOUGH:
            return False
        self.reason = f"HTTP {record.status}: {record.detail}"
        return True
