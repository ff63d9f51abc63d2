"""One line that lives while a run is under way: rewritten on a terminal, now and then elsewhere."""

from __future__ import annotations

from typing import TextIO

from loadtest.monitors import Moment
from loadtest.report.table import seconds

_QUIET_S = 10.0
_RECENT_S = 5.0


class Progress:
    def __init__(self, stream: TextIO, label: str) -> None:
        self._stream = stream
        self._label = label
        self._live = stream.isatty()
        self._next = 0.0
        self._counted = 0
        self._failed = 0

    def __call__(self, moment: Moment) -> None:
        if not self._live and moment.second < self._next:
            return
        self._next = moment.second + _QUIET_S
        text = self._line(moment)
        self._stream.write(f"\r\x1b[K{text}" if self._live else f"{text}\n")
        self._stream.flush()

    def done(self) -> None:
        """Takes the line away, so that what follows begins on a clean one."""
        if self._live:
            self._stream.write("\r\x1b[K")
            self._stream.flush()

    def _line(self, moment: Moment) -> str:
        since = moment.second - _RECENT_S
        recent = [record for record in moment.records[-500:] if record.ended >= since]
        firsts = sorted(r.first_token - r.sent for r in recent if r.first_token is not None)
        ttft = f", TTFT {seconds(firsts[len(firsts) // 2])}" if firsts else ""
        self._failed += sum(not record.ok for record in moment.records[self._counted :])
        self._counted = len(moment.records)
        return (
            f"{self._label} {moment.second:5.0f} s  {moment.driver.in_flight} in progress, "
            f"{len(moment.records)} ended, {self._failed} failed{ttft}"
            f"{f', LOOP LATE {seconds(moment.lag)}' if moment.lag > 0.05 else ''}"
        )
