"""The ranges of the sampling numbers: checked at the edge and again at admission, written here.

They keep float32 finite for every row of logits within +-1e36, whatever is combined, with room
for what no checkpoint that means anything comes near. Only the repetition penalty multiplies: by at
most 100, either way (a penalty of 1e-38 made infinities of ordinary logits). The others add at most
100 (a bias) and twice the length of an answer. Temperatures divide the distance from the highest
logit, which is 0 for that one and at worst minus infinity, "never", for another; below the least
number that float32 holds they are 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Range(NamedTuple):
    """Finite numbers from ``low`` to ``high``; ``above_low`` leaves ``low`` itself out."""

    low: float
    high: float
    above_low: bool = False

    def __contains__(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        # False for what is not finite, too.
        return (self.low < value if self.above_low else self.low <= value) and value <= self.high

    def __str__(self) -> str:
        least = "above" if self.above_low else "from"
        return f"a finite number {least} {self.low:g} to {self.high:g}"


LOGIT_BIAS = Range(-100, 100)

# By the names of SamplingParams.
SAMPLING_RANGES: Mapping[str, Range] = {
    "temperature": Range(0, 2),
    "top_p": Range(0, 1, above_low=True),
    "min_p": Range(0, 1),
    "presence_penalty": Range(-2, 2),
    "frequency_penalty": Range(-2, 2),
    "repetition_penalty": Range(0.01, 100),
}
