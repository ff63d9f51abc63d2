"""DecodePace: how many tokens a step may give each row, from what steps take.

What happens outside is seen between steps: a request that arrives, a client that leaves, tokens on
their way to a stream. So a step of several tokens may take only so long. A model whose steps are
short saves most of what a step costs beside its work; one whose steps are long has little to save,
and gives one token a step.
"""

from __future__ import annotations

from server.engine.step_plan import StepPlan

MOST_SECONDS = 0.05  # of a step that gives several tokens


class DecodePace:
    def __init__(self) -> None:
        self._seconds = MOST_SECONDS  # that the last decode step took for one token of each row

    @property
    def decode_steps(self) -> int:
        """Tokens for each row that fit into MOST_SECONDS, at least one."""
        return max(1, int(MOST_SECONDS / self._seconds))

    def note(self, plan: StepPlan, seconds: float) -> None:
        """A step has ended, and took so long."""
        if plan.num_tokens == len(plan.rows) * plan.num_decode_steps:
            self._seconds = max(seconds / plan.num_decode_steps, 1e-6)
