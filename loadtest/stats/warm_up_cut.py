"""Where the warm-up ends: the rule MSER-5 (White 1997), on requests in the order they were sent.

A run begins empty, so its first answers are faster than those to come, or slower where caches and
kernels are cold. MSER cuts the beginning whose removal makes the mean of the rest most certain: of
batches of 5 it finds the d that minimises  variance(rest) / size(rest). A d in the second half
means that the run never settled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from loadtest.stats.records import RequestRecord

BATCH = 5
LEAST_BATCHES = 10


@dataclass(frozen=True, slots=True)
class Steady:
    """The part of a run that counts. ``start`` and ``end`` are seconds; requests sent within count.

    ``settled`` is False where the rule found no steady part; then the whole run counts.
    """

    start: float
    end: float
    settled: bool
    reason: str

    def holds(self, record: RequestRecord) -> bool:
        return self.start <= record.sent <= self.end


def ran(records: Sequence[RequestRecord], steady: Steady) -> tuple[float, float]:
    """From the first sending to the last end of the steady part's requests: what rates are over.

    A schedule may end long before its requests do, or be longer than they take.
    """
    counted = [record for record in records if steady.holds(record)]
    if not counted:
        return steady.start, steady.end
    return min(record.sent for record in counted), max(record.ended for record in counted)


def find_steady(records: Sequence[RequestRecord], sent_until: float) -> Steady:
    """The steady part of a run whose last request was due at ``sent_until``."""
    whole = sorted((record for record in records if record.ok), key=lambda record: record.sent)
    values = np.array([record.ended - record.sent for record in whole])
    batches = values[: values.size // BATCH * BATCH].reshape(-1, BATCH).mean(axis=1)
    if batches.size < LEAST_BATCHES:
        needed = BATCH * LEAST_BATCHES
        return Steady(0.0, sent_until, True, f"whole run: fewer than {needed} answers to judge by")
    rest = [batches[cut:] for cut in range(batches.size - LEAST_BATCHES // 2)]
    errors = [float(part.var()) / part.size for part in rest]
    cut = int(np.argmin(errors))
    if cut > batches.size // 2:
        return Steady(0.0, sent_until, False, "whole run: it never settled (MSER-5)")
    start = 0.0 if cut == 0 else whole[cut * BATCH].sent
    removed = f"the first {cut * BATCH} answers cut" if cut else "no warm-up to cut"
    return Steady(start, sent_until, True, f"{removed} (MSER-5)")
